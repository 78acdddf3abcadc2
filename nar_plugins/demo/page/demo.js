"use strict";

// Text from models and users goes into the page by textContent only.

const MOST = 4; // models at once
const SIGNS = { masked: "", draft: "draft", accepted: "✓", rejected: "✗", corrected: "↳", repeated: "=", path: "→" };
const PLAIN = ["rejected", "blank", "aside", "start"]; // not coloured by probability
const SPOKEN = {
  kept: "stays", masked: "to be predicted", new: "predicted now", draft: "draft", accepted: "accepted draft",
  rejected: "dropped", corrected: "in the place of a rejected draft", blank: "blank", repeated: "repetition",
  start: "start of the graph", path: "on the path, link of", aside: "not on the path",
};
const $ = (id) => document.getElementById(id);
const state = { models: [], limit: Infinity, panels: [], run: 0, timer: null, played: 0, slowest: 0 };

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function say(text, error = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", error);
}

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let answer, found;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("nar-demo does not answer: is it still running?");
  }
  try {
    found = await answer.json();
  } catch {
    throw new Error(`the answer was not readable (status ${answer.status})`);
  }
  if (!answer.ok) throw new Error(found.error || `status ${answer.status}`);
  return found;
}

// -- the form ------------------------------------------------------------------------------------------------------------

const boxes = () => [...$("models").querySelectorAll("input")];
const chosen = () => boxes().filter((box) => box.checked).map((box) => Number(box.value));
const length = (text) => [...text].length; // characters as Python counts them

function limitModels() {
  const full = chosen().length >= MOST;
  for (const box of boxes()) box.disabled = full && !box.checked;
}

function count() {
  const characters = length($("text").value), over = characters > state.limit;
  $("count").textContent = `${characters.toLocaleString("en")} of ${state.limit.toLocaleString("en")} characters`;
  $("count").classList.toggle("over", over);
}

async function start() {
  try {
    const found = await ask("/models");
    state.models = found.models;
    state.limit = found.max_characters;
  } catch (error) {
    say(error.message, true);
    return;
  }
  state.models.forEach((model, number) => {
    const label = make("label"), box = make("input");
    box.type = "checkbox";
    box.value = String(number);
    box.checked = number < MOST;
    label.append(box, make("span", "", model.name));
    $("models").append(label);
  });
  limitModels();
  count();
}

async function translate(event) {
  event.preventDefault();
  const text = $("text").value, models = chosen(), characters = length(text);
  if (!text.trim()) return say("Type a sentence first.", true);
  if (characters > state.limit) {
    return say(`The text has ${characters.toLocaleString("en")} characters, the limit is ${state.limit.toLocaleString("en")}: give one sentence.`, true);
  }
  if (!models.length) return say("Choose a model.", true);
  const run = ++state.run, panels = [];
  stop();
  $("translate").disabled = true;
  try {
    for (const [done, number] of models.entries()) { // one after another: a model that runs alone is timed alone
      say(`Translating with ${state.models[number].name} (${done + 1} of ${models.length}) ...`);
      try {
        panels.push(new Panel(number, await ask("/translate", { model: number, text })));
      } catch (error) {
        panels.push(new Panel(number, null, error.message));
      }
      if (run !== state.run) return;
    }
  } finally {
    $("translate").disabled = false;
  }
  const wrong = panels.filter((panel) => !panel.found).length;
  say(wrong ? `${panels.length - wrong} of ${panels.length} models translated.` : "Done.", wrong > 0);
  show(panels);
}

// -- the panels ----------------------------------------------------------------------------------------------------------

class Panel {
  constructor(number, found, error) {
    const model = state.models[number];
    this.found = found;
    this.frames = found ? found.frames : [];
    this.node = make("article", "panel");
    const title = make("h2", "", model.name);
    title.id = `panel-${number}`;
    this.node.setAttribute("aria-labelledby", title.id);
    this.node.append(title, make("p", "about", model.about));
    this.output = make("p", "output", found ? found.text : error);
    this.output.dir = "auto";
    if (!found) {
      this.node.classList.add("wrong");
      this.node.append(this.output);
      return;
    }
    this.figures();
    this.node.append(this.output);
    if (this.frames.length) this.slider(number);
    const source = make("details");
    source.append(make("summary", "", "What the model reads"), make("p", "source", found.source.join(" ")));
    this.node.append(source);
    this.at(this.frames.length - 1);
  }

  figures() {
    const { passes, seconds, tokens } = this.found, figures = make("dl", "figures");
    const per = passes ? ((tokens + 1) / passes).toFixed(1) : "0"; // </s> is a token, too
    for (const [name, value] of [[passes === 1 ? "pass" : "passes", passes], ["ms", milliseconds(seconds)], ["tokens a pass", per]]) {
      const pair = make("div");
      pair.append(make("dt", "", name), make("dd", "", String(value)));
      figures.append(pair);
    }
    this.bar = make("div", "timeline");
    this.bar.setAttribute("aria-hidden", "true"); // the milliseconds say the same
    this.bar.append(make("span"));
    this.node.append(figures, this.bar);
  }

  slider(number) {
    this.cells = make("ol", "cells");
    this.cells.setAttribute("role", "list"); // a list without bullets is none for some screen readers
    this.cells.dir = "auto";
    const box = make("div", "graph");
    this.arcs = $("arcs").content.firstElementChild.cloneNode();
    box.append(this.cells, this.arcs);
    this.cells.classList.toggle("linked", this.frames.some((frame) => frame.arcs.length));
    this.label = make("p", "label");
    this.input = make("input");
    Object.assign(this.input, { type: "range", min: "0", max: String(this.frames.length - 1), step: "1", id: `frame-${number}` });
    this.input.addEventListener("input", () => { stop(); this.at(Number(this.input.value)); });
    const label = make("label", "", "Passes"), row = make("div", "steps");
    label.htmlFor = this.input.id;
    row.append(label, this.input);
    this.node.append(box, this.label, row);
  }

  at(index) {
    if (!this.frames.length || index === this.index) return;
    this.index = index;
    const frame = this.frames[index];
    this.cells.replaceChildren(...frame.cells.map((cell, i) => cellNode(cell, this.widest(frame, i))));
    this.label.textContent = `Pass ${frame.number} of ${this.frames[this.frames.length - 1].number}: ${frame.label}`;
    this.input.value = String(index);
    this.input.setAttribute("aria-valuetext", this.label.textContent);
    this.draw();
  }

  draw() { // the links of a graph, above the cells; one to another line leaves at its end and comes in at its start
    const { arcs } = this.frames[this.index];
    this.arcs.replaceChildren();
    if (!arcs.length || !this.cells.offsetWidth) return;
    const box = this.cells.getBoundingClientRect(), rightward = getComputedStyle(this.cells).direction === "ltr";
    const [first, last] = rightward ? [0, box.width] : [box.width, 0];
    const places = [...this.cells.children].map((cell) => {
      const { left, top, width } = cell.firstChild.getBoundingClientRect();
      return { x: left - box.left + width / 2, y: top - box.top - 1 };
    });
    for (const { start, end, percent, chosen } of arcs) {
      const from = places[start], to = places[end], path = $("arcs").content.querySelector("path").cloneNode();
      const up = (distance) => Math.min(26, 7 + Math.abs(distance) * 0.09); // below the line above
      let drawn;
      if (Math.abs(from.y - to.y) < 4) {
        const h = up(to.x - from.x);
        drawn = `M${from.x} ${from.y}C${from.x} ${from.y - h} ${to.x} ${to.y - h} ${to.x} ${to.y}`;
      } else {
        const [out, into] = [up(last - from.x), up(to.x - first)];
        drawn = `M${from.x} ${from.y}Q${from.x} ${from.y - out} ${last} ${from.y - out}M${first} ${to.y - into}Q${to.x} ${to.y - into} ${to.x} ${to.y}`;
      }
      path.setAttribute("d", drawn);
      path.setAttribute("class", chosen ? "chosen" : "");
      path.setAttribute("stroke-width", (1 + percent / 50).toFixed(2));
      path.setAttribute("stroke-opacity", chosen ? "1" : (0.2 + percent / 200).toFixed(2));
      this.arcs.append(path);
    }
  }

  widest(frame, i) { // characters: a mask is as wide as the longest token of its place, so that its neighbours stay
    const alike = this.frames.filter((other) => other.cells.length === frame.cells.length);
    return Math.max(1, ...alike.map((other) => other.cells[i].text.length));
  }

  reserve() { // room for the longest frame, so that nothing jumps
    if (!this.frames.length) return;
    const now = this.index, room = (frame) => frame.cells.reduce((sum, cell) => sum + cell.text.length + 3, 0);
    const longest = this.frames.reduce((best, frame, i) => (room(frame) > room(this.frames[best]) ? i : best), 0);
    this.cells.style.minHeight = "";
    this.at(longest);
    this.cells.style.minHeight = `${this.cells.offsetHeight}px`;
    this.at(now);
    this.draw(); // the places may be others, also where the frame is not
  }
}

function cellNode(cell, width) {
  const node = make("li", `cell ${cell.state}`), scored = cell.percent !== null && !PLAIN.includes(cell.state);
  if (cell.joined) node.classList.add("joined");
  if (cell.state === "masked") node.style.setProperty("--w", String(width));
  if (scored) {
    node.classList.add("scored");
    node.style.setProperty("--p", String(cell.percent));
  }
  const text = cell.state === "masked" ? "\u00a0?\u00a0" : cell.state === "blank" ? "–" : cell.state === "start" ? "•" : cell.text;
  const token = make("span", "token", text), percent = cell.percent === null ? "" : String(cell.percent);
  const sign = make("span", "sign", [SIGNS[cell.state] || "", percent].filter(Boolean).join(" ") || "\u00a0");
  sign.setAttribute("aria-hidden", "true");
  node.append(token, sign, make("span", "spoken", `, ${SPOKEN[cell.state]}${percent && `, ${percent} percent`}`));
  return node;
}

const milliseconds = (seconds) => (seconds < 0.01 ? (1000 * seconds).toFixed(1) : Math.round(1000 * seconds));

function show(panels) {
  state.panels = panels;
  state.played = 0;
  state.slowest = Math.max(0, ...panels.map((panel) => (panel.found ? panel.found.seconds : 0)));
  $("panels").replaceChildren(...panels.map((panel) => panel.node));
  $("panels").classList.toggle("several", panels.length > 1);
  $("results").hidden = false;
  for (const panel of panels) {
    if (panel.bar) panel.bar.firstChild.style.setProperty("--share", String((100 * panel.found.seconds) / state.slowest));
    panel.reserve();
  }
  $("play").disabled = !panels.some((panel) => panel.frames.length > 1);
  paceChanged();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play();
}

// -- playing: every panel takes its own measured time, stretched by one factor -----------------------------------------------

const duration = () => Number($("pace").value); // seconds of the slowest

function paceChanged() {
  const shown = (1000 * state.slowest) / duration();
  $("scale").textContent = state.slowest ? `One second here is ${shown < 10 ? shown.toFixed(1) : Math.round(shown)} ms of the models' time.` : "";
}

function draw(played) {
  for (const panel of state.panels) {
    if (!panel.frames.length) continue;
    const end = duration() * (panel.found.seconds / state.slowest);
    panel.at(Math.min(panel.frames.length - 1, Math.floor((played / end) * panel.frames.length)));
  }
}

function play() {
  if ($("play").disabled) return;
  stop();
  if (state.played >= duration()) state.played = 0;
  let before = performance.now();
  $("play").textContent = "Pause";
  draw(state.played);
  state.timer = setInterval(() => {
    const now = performance.now();
    state.played += (now - before) / 1000;
    before = now;
    draw(state.played);
    if (state.played >= duration()) stop();
  }, 40);
}

function stop() {
  clearInterval(state.timer);
  state.timer = null;
  $("play").textContent = "Play";
}

$("form").addEventListener("submit", translate);
$("text").addEventListener("input", count);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!$("translate").disabled) $("form").requestSubmit();
  }
});
$("models").addEventListener("change", limitModels);
$("play").addEventListener("click", () => (state.timer === null ? play() : stop()));
$("pace").addEventListener("change", () => { state.played = 0; paceChanged(); if (state.timer !== null) play(); });
addEventListener("resize", () => state.panels.forEach((panel) => panel.reserve()));
start();
