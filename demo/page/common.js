"use strict";

const $ = (id) => document.getElementById(id);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

let maxBytes = Infinity;  // of an upload; the program says how many

// Asks an address of this page. What is wrong is one sentence, thrown as an Error.
async function ask(address, query, body) {
  if (body && body.size > maxBytes) {
    throw new Error(`This file has more than ${(maxBytes / 1e6).toFixed(0)} MB; make it smaller.`);
  }
  let response;
  try {
    const method = body === undefined ? "GET" : "POST";
    response = await fetch(`${address}?${new URLSearchParams(query)}`, { method, body });
  } catch {
    throw new Error("The program behind this page does not answer; was it stopped?");
  }
  let content;
  try {
    content = await response.json();
  } catch {
    throw new Error(`The program behind this page failed (${response.status}); its terminal says why.`);
  }
  if (!response.ok) throw new Error(content.error);
  return content;
}

// Only the answer to the newest of several questions counts.
function newest(section, errorId, failed) {
  let last = 0;
  return async (question, show) => {
    const mine = ++last;
    section.classList.add("busy");
    try {
      const answer = await question();
      if (mine === last) {
        $(errorId).textContent = "";
        show(answer);
      }
    } catch (error) {
      if (mine === last) {
        $(errorId).textContent = error.message;
        if (failed) failed();
      }
    } finally {
      if (mine === last) section.classList.remove("busy");
    }
  };
}

function loadImage(address) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("The image could not be shown."));
    image.src = address;
  });
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function showBars(id, rows) {
  $(id).replaceChildren(...rows.map(([name, share]) => {
    const bar = make("div", "bar");
    const track = make("div", "track");
    const fill = make("div", "fill");
    fill.style.width = `${100 * share}%`;
    track.append(fill);
    bar.append(make("span", "", name), track, make("span", "share", percent(share)));
    return bar;
  }));
}

const LABELS = { test_acc: "test accuracy", single_error: "error in %", dataset: "data" };

function showCard(id, card) {
  $(id).querySelector("summary").textContent = `Computed by ${card.file} (${card.status}), ${card.computes}`;
  $(id).querySelector("dl").replaceChildren(...Object.entries(card.facts).flatMap(
    ([name, value]) => [make("dt", "", LABELS[name] || name), make("dd", "", value)]));
}

function fillSelect(id, names) {
  $(id).replaceChildren(...names.map((name) => {
    const choice = make("option", "", name);
    choice.value = name;
    return choice;
  }));
}
