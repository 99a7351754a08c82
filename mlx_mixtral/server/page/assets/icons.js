// The pictures on buttons, and the mark: eight experts, of which two are at work.

const SVG = "http://www.w3.org/2000/svg";

// Lines on a field of 20 by 20.
const LINES = {
  plus: "M10 4v12M4 10h12",
  list: "M3.5 6h13M3.5 10h13M3.5 14h8",
  close: "m5 5 10 10M15 5 5 15",
  send: "M10 16V4.5M5 9.5l5-5 5 5",
  copy: "M9 7h5a2 2 0 0 1 2 2v5a2 2 0 0 1-2 2H9a2 2 0 0 1-2-2V9a2 2 0 0 1 2-2ZM4.5 12.5V6a2 2 0 0 1 2-2h6",
  check: "m4.5 10.5 3.8 3.8 7.2-8.3",
  edit: "M4 16h3l8.5-8.5a2.1 2.1 0 0 0-3-3L4 13v3Z",
  again: "M15.8 8.4A6.2 6.2 0 1 0 16 12M16 4.5v4h-4",
  left: "m12 5-5 5 5 5",
  right: "m8 5 5 5-5 5",
  down: "M10 4v11.5M5 10.5l5 5 5-5",
  pause: "M7.2 5v10M12.8 5v10",
  sliders: "M3.5 6.5h7M14.5 6.5h2M3.5 13.5h2M9.5 13.5h7M12.5 4.5a2 2 0 1 0 0 4 2 2 0 0 0 0-4ZM7.5 11.5a2 2 0 1 0 0 4 2 2 0 0 0 0-4Z",
  sun: "M10 6.8a3.2 3.2 0 1 0 0 6.4 3.2 3.2 0 0 0 0-6.4ZM10 2.8v1.5M10 15.7v1.5M2.8 10h1.5M15.7 10h1.5M4.9 4.9 6 6M14 14l1.1 1.1M4.9 15.1 6 14M14 6l1.1-1.1",
  moon: "M16 11.5A6.5 6.5 0 0 1 8.5 4 6.5 6.5 0 1 0 16 11.5Z",
  auto: "M10 3.8a6.2 6.2 0 1 0 0 12.4 6.2 6.2 0 0 0 0-12.4Z",
};
const SURFACES = {
  stop: "M7.6 6h4.8A1.6 1.6 0 0 1 14 7.6v4.8a1.6 1.6 0 0 1-1.6 1.6H7.6A1.6 1.6 0 0 1 6 12.4V7.6A1.6 1.6 0 0 1 7.6 6Z",
  play: "M7 4.8v10.4l8-5.2z",
  auto: "M10 3.8a6.2 6.2 0 0 1 0 12.4z",
};
// Dots on a grid: [across, down, radius, numbers of those that are lit].
const DOTS = {
  more: [3, 1, 1.4, [0, 1, 2]],
  grid: [3, 3, 1.9, [0, 5, 7]],
  mark: [4, 2, 2.2, [2, 5]],
};

function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** A picture, for a button whose label says what it does. */
export function icon(name) {
  const wide = name === "mark" ? "0 0 28 16" : "0 0 20 20";
  const svg = shape("svg", { class: `glyph glyph-${name}`, viewBox: wide, "aria-hidden": "true" });
  if (name in LINES) svg.append(shape("path", { d: LINES[name] }));
  if (name in SURFACES) svg.append(shape("path", { d: SURFACES[name], class: "surface" }));
  if (name in DOTS) svg.append(...dots(...DOTS[name], name === "mark"));
  return svg;
}

function dots(across, down, radius, lit, isMark) {
  const step = isMark ? 7 : 5.2;
  const [left, top] = isMark ? [3.5, 4] : [10 - ((across - 1) * step) / 2, 10 - ((down - 1) * step) / 2];
  return Array.from({ length: across * down }, (_, n) => {
    const on = lit.includes(n);
    return shape("circle", {
      class: on ? "dot lit" : "dot",
      cx: left + (n % across) * step,
      cy: top + Math.floor(n / across) * (isMark ? 8 : step),
      r: on && isMark ? radius * 1.36 : radius,
    });
  });
}
