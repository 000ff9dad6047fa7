"use strict";

(() => {
  const pad = $("pad"), view = $("view"), brush = pad.getContext("2d"), screen = view.getContext("2d");
  const run = newest($("glimpse"), "digit-error");
  const STEP = 0.1, PAUSE_MS = 650;
  let source = null;  // { drawing: Blob } or { test: number }
  let drawn = 0;  // counts up where the pad is cleared
  let seen = null, image = null, seed = 0, first = { x: 0, y: 0 }, timer = null;

  // ---------------------------------------------------------------- drawing
  function clear() {
    drawn += 1;
    brush.fillStyle = "#000";
    brush.fillRect(0, 0, pad.width, pad.height);
  }

  function place(event) {
    const box = pad.getBoundingClientRect();
    return [(event.clientX - box.left) * pad.width / box.width, (event.clientY - box.top) * pad.height / box.height];
  }

  let last = null;
  function stroke(event) {
    const [x, y] = place(event);
    brush.strokeStyle = "#fff";
    brush.lineWidth = 22;
    brush.lineCap = brush.lineJoin = "round";
    brush.beginPath();
    brush.moveTo(...(last || [x, y]));
    brush.lineTo(x, y);
    brush.stroke();
    last = [x, y];
  }

  pad.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    pad.setPointerCapture(event.pointerId);
    if (!source || !("drawing" in source)) clear();
    last = null;
    stroke(event);
  });
  pad.addEventListener("pointermove", (event) => { if (last) stroke(event); });
  const end = () => {
    if (!last) return;
    last = null;
    const before = drawn;
    pad.toBlob((drawing) => {
      if (before !== drawn) return;  // cleared meanwhile
      source = { drawing };
      look(true);
    }, "image/png");
  };
  pad.addEventListener("pointerup", end);
  pad.addEventListener("pointercancel", end);

  // ---------------------------------------------------------------- asking
  function look(inTurn) {
    if (!source) return;
    const query = { model: $("glimpse-model").value, seed, x: first.x.toFixed(3), y: first.y.toFixed(3) };
    if ("test" in source) query.test = source.test;
    const asked = source;
    run(() => ask("digit", query, asked.drawing || ""), async (answer) => {
      const loaded = await loadImage(answer.image);
      if (source !== asked) return;  // cleared or drawn anew meanwhile
      image = loaded;
      seen = answer;
      if ("test" in asked && !last) {  // a stroke that has begun stays
        brush.imageSmoothingEnabled = false;
        brush.drawImage(image, 0, 0, pad.width, pad.height);
      }
      $("step").max = answer.looks.length;
      $("step").value = answer.looks.length;
      showCard("digit-card", answer.card);
      $("reseed").hidden = !answer.placed;
      showPatches();
      if (inTurn && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
      else { clearInterval(timer); show(); }
    });
  }

  // ---------------------------------------------------------------- showing
  function show() {
    if (!seen) return;
    const step = Number($("step").value), scale = view.width / seen.size;
    screen.imageSmoothingEnabled = false;
    screen.drawImage(image, 0, 0, view.width, view.height);
    const middles = seen.looks.slice(0, step).map(({ boxes: [[left, top, right, bottom]] }) =>
      [(left + right) / 2 * scale, (top + bottom) / 2 * scale]);
    screen.strokeStyle = "rgba(120, 190, 255, .9)";
    screen.lineWidth = 2;
    screen.beginPath();
    middles.forEach((middle, index) => (index ? screen.lineTo(...middle) : screen.moveTo(...middle)));
    screen.stroke();
    middles.forEach((middle, index) => {
      screen.fillStyle = index ? "#78beff" : "#ffb000";
      screen.beginPath();
      screen.arc(...middle, 4, 0, 7);
      screen.fill();
    });
    screen.strokeStyle = "#ffb000";
    for (const [left, top, right, bottom] of seen.looks[step - 1].boxes) {
      screen.strokeRect(left * scale, top * scale, (right - left) * scale, (bottom - top) * scale);
    }
    $("step-text").textContent = `${step} of ${seen.looks.length}`;
    document.querySelectorAll("#patches .patch").forEach((patch, index) => {
      patch.classList.toggle("current", index === step - 1);
      patch.classList.toggle("later", index >= step);
    });
    const shares = seen.looks[step - 1].probabilities;
    const best = shares.indexOf(Math.max(...shares));
    const answer = make("span", "", `After ${step === 1 ? "one look" : `${step} looks`}: `);
    answer.append(make("strong", "", String(best)), `, ${percent(shares[best])}`);
    if (seen.label !== null) answer.append(` (the label says ${seen.label})`);
    $("digit-answer").replaceChildren(answer);
    $("digit-answer").dataset.digit = best;
    showBars("digit-bars", shares.map((share, digit) => [String(digit), share]));
  }

  function showPatches() {
    $("patches").replaceChildren(...seen.looks.map((one, index) => {
      const patch = make("div", "patch");
      for (const address of one.patches) {
        const picture = make("img");
        picture.src = address;
        picture.alt = `what look ${index + 1} sees`;
        patch.append(picture);
      }
      patch.append(make("div", "", `look ${index + 1}`));
      return patch;
    }));
  }

  function play() {
    clearInterval(timer);
    if (!seen) return;
    $("step").value = 1;
    show();
    timer = setInterval(() => {
      if (Number($("step").value) >= seen.looks.length) return clearInterval(timer);
      $("step").value = Number($("step").value) + 1;
      show();
    }, PAUSE_MS);
  }

  // ---------------------------------------------------------------- controls
  const kept = (value) => Math.max(-1, Math.min(1, value));
  view.addEventListener("click", (event) => {
    const box = view.getBoundingClientRect();
    first = { x: kept(2 * (event.clientX - box.left) / box.width - 1), y: kept(2 * (event.clientY - box.top) / box.height - 1) };
    look();
  });
  view.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    first = { x: kept(first.x + move[0]), y: kept(first.y + move[1]) };
    look();
  });
  $("step").addEventListener("input", () => { clearInterval(timer); show(); });
  $("play").addEventListener("click", play);
  $("clear").addEventListener("click", () => {
    clear();
    clearInterval(timer);
    source = seen = null;
    first = { x: 0, y: 0 };
    screen.clearRect(0, 0, view.width, view.height);
    for (const id of ["patches", "digit-bars", "digit-answer"]) $(id).replaceChildren();
    delete $("digit-answer").dataset.digit;
    $("digit-error").textContent = $("step-text").textContent = "";
  });
  const take = () => { source = { test: $("test-digit").value }; look(true); };
  $("take-digit").addEventListener("click", take);
  $("test-digit").addEventListener("keydown", (event) => { if (event.key === "Enter") take(); });
  $("reseed").addEventListener("click", () => { seed += 1; look(true); });
  $("glimpse-model").addEventListener("change", () => look());

  clear();
  run(() => ask("about", {}), (about) => {
    maxBytes = about.most;
    fillSelect("glimpse-model", about.glimpses);
    fillSelect("masks-model", about.classifiers);
    $("test-digit").max = about.digits.count - 1;
    $("test-digit").title = `0 to ${about.digits.count - 1} of ${about.digits.name}`;
    take();
    document.dispatchEvent(new Event("ready"));
  });
})();
