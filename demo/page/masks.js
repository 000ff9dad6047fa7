"use strict";

(() => {
  const run = newest($("masks"), "picture-error", forget), SIZE = 224;
  // The map "inferno" of matplotlib (CC0) at nine places.
  const HEAT = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10],
    [249, 201, 50], [252, 255, 164]];
  let source = null;  // { file: File } or { test: number }
  let seen = null, image = null;

  // The answer to another picture must not stand beside one that could not be read.
  function forget() {
    seen = null;
    for (const id of ["modules", "picture-answer", "picture-bars"]) $(id).replaceChildren();
    delete $("picture-answer").dataset.best;
  }

  function heat(share) {
    const place = Math.max(0, Math.min(1, share)) * (HEAT.length - 1);
    const low = Math.min(Math.floor(place), HEAT.length - 2);
    return HEAT[low].map((value, index) => value + (place - low) * (HEAT[low + 1][index] - value));
  }

  function look() {
    if (!source) return;
    const query = { model: $("masks-model").value };
    if ("test" in source) query.test = source.test;
    const asked = source;
    run(() => ask("picture", query, asked.file || ""), async (answer) => {
      const loaded = await loadImage(answer.image);
      if (source !== asked) return;  // another network, which has no test images here
      image = loaded;
      seen = answer;
      showCard("picture-card", answer.card);
      const [best] = answer.classes;
      const text = make("span");
      text.append(make("strong", "", best.name), `, ${percent(best.probability)}`);
      if (answer.label !== null) text.append(` (the label says ${answer.label})`);
      $("picture-answer").replaceChildren(text);
      $("picture-answer").dataset.best = best.name;
      showBars("picture-bars", answer.classes.map(({ name, probability }) => [name, probability]));
      show();
    });
    document.querySelectorAll("#thumbnails button").forEach((button, index) =>
      button.setAttribute("aria-pressed", String("test" in source && Number(source.test) === index)));
  }

  function draw(map) {
    const canvas = make("canvas");
    canvas.width = canvas.height = SIZE;
    const pen = canvas.getContext("2d");
    if (!map) {
      pen.imageSmoothingEnabled = false;
      pen.drawImage(image, 0, 0, SIZE, SIZE);
      return canvas;
    }
    pen.filter = "grayscale(1)";
    pen.drawImage(image, 0, 0, SIZE, SIZE);
    pen.filter = "none";
    const small = make("canvas"), height = map.length, width = map[0].length;
    small.width = width;
    small.height = height;
    const values = map.flat(), low = Math.min(...values), high = Math.max(...values);
    const pixels = new ImageData(width, height);
    values.forEach((value, index) =>
      pixels.data.set([...heat(high > low ? (value - low) / (high - low) : 0), 255], 4 * index));
    small.getContext("2d").putImageData(pixels, 0, 0);
    pen.globalAlpha = Number($("strength").value) / 100;
    pen.drawImage(small, 0, 0, SIZE, SIZE);
    return canvas;
  }

  function show() {
    if (!seen) return;
    const kind = document.querySelector("input[name=map]:checked").value;
    const figures = [["as the network gets it", null], ...seen.modules.map(({ name, maps }) => [name, maps[kind]])];
    $("modules").replaceChildren(...figures.map(([name, map]) => {
      const figure = make("figure"), caption = make("figcaption", "", name.replace("attention_", ""));
      if (map) {
        const values = map.flat();
        caption.append(make("br"), `${map.length}x${map[0].length}, ` +
          `${Math.min(...values).toFixed(2)} to ${Math.max(...values).toFixed(2)}`);
      }
      const canvas = draw(map);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", map ? `${kind} of ${name}` : name);
      figure.append(canvas, caption);
      return figure;
    }));
  }

  async function thumbnails() {
    let images = [];
    const model = $("masks-model").value;
    try {
      ({ images } = await ask("thumbnails", { model }));
    } catch (error) {
      if (model === $("masks-model").value) $("picture-error").textContent = error.message;
    }
    if (model !== $("masks-model").value) return;  // the newest choice counts
    $("thumbnails").replaceChildren(...images.map((address, index) => {
      const button = make("button"), picture = make("img");
      button.type = "button";
      picture.src = address;
      picture.alt = `test image ${index}`;
      button.append(picture);
      button.addEventListener("click", () => { source = { test: index }; $("upload").value = ""; look(); });
      return button;
    }));
    if (images.length && !(source && source.file)) source = { test: 0 };
    else if (!(source && source.file)) source = null;
    if (!source) {
      forget();  // what another network said must not stand under this one's name
      $("picture-card").querySelector("summary").textContent = "";
      $("picture-card").querySelector("dl").replaceChildren();
      $("picture-answer").textContent = "Choose a picture of your own.";
    }
    look();
  }

  $("upload").addEventListener("change", () => {
    const [file] = $("upload").files;
    if (!file) return;
    source = { file };
    look();
  });
  $("strength").addEventListener("input", show);
  document.querySelectorAll("input[name=map]").forEach((choice) => choice.addEventListener("change", show));
  $("masks-model").addEventListener("change", thumbnails);
  document.addEventListener("ready", thumbnails);
})();
