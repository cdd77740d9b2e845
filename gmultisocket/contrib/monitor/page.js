// The live page. Everything that came from elsewhere becomes text, and nothing else.

import {Client} from "./ws/gmultisocket.js";

const SECONDS = 120;
// What a sample has of a group, behind its kind and name.
const OUT = 0, IN = 1, BYTES_OUT = 2, BYTES_IN = 3, PIPES = 4, QUEUE = 5, DROPPED = 6;

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

// How numbers look

function count(value) {
  if (value >= 1e6) return `${trim(value / 1e6)} M`;
  if (value >= 1e4) return `${trim(value / 1e3)} k`;
  return trim(value);
}

function bytes(value) {
  let unit = 0;
  for (; value >= 1000 && unit < UNITS.length - 1; unit++) value /= 1024;
  return `${trim(value)} ${UNITS[unit]}`;
}

function time(seconds) {
  return seconds >= 1 ? `${trim(seconds)} s` : `${trim(seconds * 1000)} ms`;
}

function trim(value) {
  if (value === 0) return "0";
  if (value >= 100) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(value >= 10 ? 3 : 2)));
}

// Elements

function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function drawing(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Plots

const WIDTH = 240, HEIGHT = 60;

/** One plot: a title, the latest values, and a line for each series. */
class Plot {
  /**
   * @param {string} title
   * @param {string[]} series what tells the lines apart; [""] for one line
   * @param {(value: number) => string} format
   * @param {number[]} steps what the top of the plot may be, times a power of the last one
   * @param {number} least the lowest top
   */
  constructor(title, series, format, steps, least) {
    this.title = title;
    this.series = series;
    this.format = format;
    this.steps = steps;
    this.least = least;
    this.points = [];
    this.outputs = series.map((label, index) =>
      element("output", {class: series.length > 1 ? ["one", "two"][index] : "single"}));
    this.lines = series.map((_, index) => drawing("path", {class: `line ${["one", "two"][index]}`}));
    this.area = drawing("path", {class: "area one"});
    this.cursor = drawing("line", {class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden"});
    this.top = element("span", {class: "top"});
    this.begin = element("span", {}, "2 min ago");
    this.end = element("span", {}, "now");
    const grid = [0, HEIGHT / 2, HEIGHT].map(y => drawing("line", {class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y}));
    this.svg = drawing("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img"},
      ...grid, this.area, ...this.lines.toReversed(), this.cursor);
    this.svg.addEventListener("pointermove", event => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.root = element("article", {class: "plot"},
      element("h2", {}, title), element("p", {}, ...this.outputs),
      element("figure", {}, this.top, this.svg, element("figcaption", {}, this.begin, this.end)));
    this.pointed = null;
  }

  /** Show samples: [time, values] each, the oldest first. */
  show(points, now) {
    this.points = points;
    this.now = now;
    const most = Math.max(this.least, ...points.flatMap(([, values]) => values));
    const top = nice(most, this.steps);
    this.top.textContent = this.format(top);
    const x = at => this.x(at).toFixed(2);
    const y = value => HEIGHT * (1 - value / top);
    this.lines.forEach((line, index) => {
      const steps = points.map(([at, values], number) => {
        // A gap in time is a gap in the line.
        const first = number === 0 || at - points[number - 1][0] > 5;
        return `${first ? "M" : "L"}${x(at)} ${y(values[index]).toFixed(2)}`;
      });
      line.setAttribute("d", steps.join(""));
      if (index === 0 && this.series.length === 1 && points.length > 1) {
        this.area.setAttribute("d", `M${x(points[0][0])} ${HEIGHT}`
          + steps.map(step => `L${step.slice(1)}`).join("") + `L${x(points.at(-1)[0])} ${HEIGHT}Z`);
      }
    });
    this.tell();
  }

  /** Return where a time is in the plot. */
  x(at) {
    return WIDTH * (1 - (this.now - at) / SECONDS);
  }

  point(event) {
    if (event === null) {
      this.pointed = null;
    } else {
      const box = this.svg.getBoundingClientRect();
      this.pointed = SECONDS * (1 - (event.clientX - box.left) / box.width);
    }
    this.tell();
  }

  /** Write the values of the latest sample, or of the one under the pointer. */
  tell() {
    if (!this.points.length) return;
    let chosen = this.points.at(-1);
    if (this.pointed !== null) {
      const wanted = this.now - this.pointed;
      chosen = this.points.reduce((a, b) => Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a);
      const x = this.x(chosen[0]);
      this.cursor.setAttribute("x1", x);
      this.cursor.setAttribute("x2", x);
    }
    this.cursor.setAttribute("visibility", this.pointed === null ? "hidden" : "visible");
    this.end.textContent = this.pointed === null ? "now" : `${Math.round(this.now - chosen[0])} s ago`;
    chosen[1].forEach((value, index) => {
      const label = this.series[index];
      const words = label ? [element("small", {}, ` ${label}`)] : [];
      this.outputs[index].replaceChildren(this.format(value), ...words);
    });
    const words = chosen[1].map((value, index) => `${this.format(value)} ${this.series[index]}`);
    this.svg.setAttribute("aria-label", `${this.title}: ${words.join(", ")}`.trim());
  }
}

/** Return the next round number: a step times a power of the last step. */
function nice(value, steps) {
  const base = steps.at(-1);
  const power = base ** Math.floor(Math.log(value) / Math.log(base));
  return [1, ...steps].map(step => step * power).find(top => top >= value * 0.999);
}

const TENS = [2, 5, 10];
const BYTES = [2, 5, 10, 20, 50, 100, 200, 500, 1024];

const plots = [
  [new Plot("Messages per second", ["out", "in"], count, TENS, 1), [OUT, IN]],
  [new Plot("Bytes per second", ["out", "in"], bytes, BYTES, 100), [BYTES_OUT, BYTES_IN]],
  [new Plot("Pipes", [""], count, TENS, 1), [PIPES]],
  [new Plot("Waiting to leave", [""], count, TENS, 1), [QUEUE]],
  [new Plot("Dropped per second", [""], count, TENS, 1), [DROPPED]],
  [new Plot("Loop lag", [""], time, TENS, 0.01), null],
];

// Tables

/** Fill a table. A column is [title, value, class]; a value is a text, or an element. */
function fill(id, columns, rows, none) {
  const table = document.getElementById(id);
  if (!rows.length) {
    table.replaceChildren(element("tbody", {}, element("tr", {}, element("td", {class: "left none"}, none))));
    return;
  }
  const cell = (name, [, , style], content) => element(name, style ? {class: style} : {}, content);
  table.replaceChildren(
    element("thead", {}, element("tr", {}, ...columns.map(column => cell("th", column, column[0])))),
    element("tbody", {}, ...rows.map(row =>
      element("tr", {}, ...columns.map(column => cell("td", column, column[1](row)))))));
}

function named(text, more = "") {
  const words = more ? [`${text} `, element("small", {}, more)] : [text];
  return element("span", {class: "name", title: `${text} ${more}`.trim()}, ...words);
}

function alarm(text, wrong) {
  return wrong ? element("span", {class: "alarm"}, text) : text;
}

function alarmCount(value) {
  return alarm(count(value), value);
}

const label = ({kind, name}) => name ? `${kind} ${name}` : kind;
const sum = values => values.reduce((a, b) => a + b, 0);

function showGroups(groups) {
  fill("groups", [
    ["Socket", group => named(label(group)), "left"],
    ["Open", group => count(group.sockets), "minor"],
    ["Pipes", group => count(group.pipes)],
    ["Full", group => alarmCount(group.full_pipes), "minor"],
    ["Out/s", group => count(group.rates.messages_sent)],
    ["In/s", group => count(group.rates.messages_received)],
    ["Bytes out/s", group => bytes(group.rates.bytes_sent), "minor"],
    ["Bytes in/s", group => bytes(group.rates.bytes_received), "minor"],
    ["To send", group => count(group.send_queue), "minor"],
    ["Longest", group => count(group.longest_send_queue), "minor"],
    ["To receive", group => count(group.recv_queue), "minor"],
    ["Dropped/s", group => alarmCount(sum(Object.values(group.drop_rates)))],
    ["Reconnects", group => count(group.reconnects), "minor"],
    ["Refused", group => count(group.refused), "minor"],
  ], groups, "There is no socket.");
}

function showSlowest(pipes) {
  fill("slowest", [
    ["Peer", pipe => pipe.called ? named(pipe.called, pipe.peer) : named(pipe.peer), "left"],
    ["Socket", pipe => named(label(pipe)), "left minor"],
    ["Pipe", pipe => String(pipe.id), "minor"],
    ["Process", pipe => String(pipe.pid), "minor"],
    ["To send", pipe => alarm(count(pipe.send_queue), pipe.full)],
    ["Bytes to send", pipe => bytes(pipe.send_queue_bytes), "minor"],
    ["In the kernel", pipe => bytes(pipe.unacknowledged)],
    ["Sent", pipe => bytes(pipe.bytes_sent), "minor"],
    ["Dropped", pipe => alarmCount(pipe.drops)],
  ], pipes, "Nobody is behind.");
}

function showDrops(groups) {
  const rows = groups.flatMap(group =>
    Object.entries(group.drops).map(([reason, total]) => ({group, reason, total, rate: group.drop_rates[reason] ?? 0})));
  rows.sort((a, b) => b.rate - a.rate || b.total - a.total);
  fill("drops", [
    ["Reason", row => row.reason, "left"],
    ["Socket", row => named(label(row.group)), "left"],
    ["Per second", row => alarmCount(row.rate)],
    ["All", row => count(row.total)],
  ], rows, "Nothing was dropped.");
}

function showProcesses(processes) {
  fill("processes", [
    ["Process", row => String(row.pid), "left"],
    ["Pipes", row => count(row.pipes)],
    ["To send", row => count(row.send_queue), "minor"],
    ["Lag p99", row => row.lag ? time(row.lag.p99) : "–"],
    ["Lag max", row => row.lag ? alarm(time(row.lag.max), row.lag.max >= 0.25) : "–"],
    ["Heard from", row => alarm(row.age < 2 ? "now" : `${time(row.age)} ago`, row.age >= 5)],
  ], processes, "There is no process.");
}

// What comes

const chooser = document.getElementById("group");
const state = document.getElementById("state");
let samples = [];
let latest = null;
let soon = 0;

function options(groups) {
  const wanted = groups.map(label).sort();
  const shown = [...chooser.options].slice(1).map(({value}) => value);
  if (wanted.length === shown.length && wanted.every((value, index) => value === shown[index])) return;
  const chosen = chooser.value;
  chooser.replaceChildren(chooser.options[0], ...wanted.map(value => element("option", {value}, value)));
  chooser.value = wanted.includes(chosen) ? chosen : "";
}

function chosen(group) {
  return !chooser.value || chooser.value === label(group);
}

function show() {
  soon = 0;
  if (latest === null) return;
  options(latest.groups);
  const now = latest.time;
  samples = samples.filter(({time}) => time > now - SECONDS && time <= now + 1).sort((a, b) => a.time - b.time);
  for (const [plot, indexes] of plots) {
    plot.show(samples.map(({time, lag, groups}) => [time, indexes === null ? [lag] : indexes.map(index =>
      sum(groups.filter(([kind, name]) => chosen({kind, name})).map(group => group[2 + index])))]), now);
  }
  const groups = latest.groups.filter(chosen);
  showGroups(groups);
  showSlowest(latest.slowest.filter(chosen));
  showDrops(groups);
  showProcesses(latest.processes);
  const note = document.getElementById("left-out");
  note.hidden = !latest.left_out;
  note.textContent = `and ${latest.left_out} more, with fewer pipes`;
}

function received(message) {
  const sample = message.json();
  if (message.topic === "now") {
    latest = sample;
    tell("live", "live");
  } else if (!samples.some(({time}) => time === sample.time)) {
    samples.push(sample);
  }
  soon ||= requestAnimationFrame(show);
}

function tell(kind, text) {
  state.className = kind;
  state.textContent = text;
}

document.getElementById("plots").append(...plots.map(([plot]) => plot.root));
chooser.addEventListener("change", show);

const client = new Client("ws", {maxDelay: 5000});
client.addEventListener("open", () => tell("waiting", "waiting for the first numbers"));
client.addEventListener("close", ({code, reason, retry}) =>
  tell("lost", retry === null ? `refused: ${reason || code}` : "connection lost, trying again"));
for (const pattern of ["now", "plot.*"]) client.subscribe(pattern, received);
