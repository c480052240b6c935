// Draws the figures from the JSON blocks of this page, in the page's own colours, and copies commands.
"use strict";

const dark = window.matchMedia("(prefers-color-scheme: dark)");
// Nothing can hover over a touch screen: plotly would show every figure's tool bar all the time, over the legend.
const touch = window.matchMedia("(hover: none), (pointer: coarse)").matches;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// The parts of a layout that follow the page: one entry for each axis that the figure has.
function theme(layout) {
  const made = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    "font.color": colour("--text"),
    "font.family": getComputedStyle(document.body).fontFamily,
    "font.size": 12,
    "hoverlabel.bgcolor": colour("--raised"),
    "hoverlabel.bordercolor": colour("--rule"),
    "hoverlabel.font.color": colour("--text"),
    "hoverlabel.align": "left",
    "modebar.bgcolor": "rgba(0,0,0,0)",
    "modebar.color": colour("--soft"),
    "modebar.activecolor": colour("--text"),
  };
  for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
    made[axis + ".gridcolor"] = colour("--grid");
    made[axis + ".zerolinecolor"] = colour("--grid");
    made[axis + ".linecolor"] = colour("--rule");
  }
  return made;
}

function nested(flat, into) {
  for (const [path, value] of Object.entries(flat)) {
    const keys = path.split(".");
    const last = keys.pop();
    let at = into;
    for (const key of keys) at = at[key] ??= {};
    at[last] = value;
  }
  return into;
}

async function draw(plot) {
  const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
  const layout = nested(theme(figure.layout), figure.layout);
  if (touch) layout.dragmode = false; // a finger that scrolls the page must not zoom the figure
  await Plotly.newPlot(plot, figure.data, layout, {
    responsive: true,
    displayModeBar: touch ? false : "hover",
    displaylogo: false,
    showSendToCloud: false, // this page sends nothing anywhere
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  });
  plot.dataset.drawn = "yes";
}

async function drawAll() {
  const plots = [...document.querySelectorAll(".plot")];
  for (const plot of plots) {
    await draw(plot);
    await new Promise((next) => setTimeout(next)); // the page stays responsive in between
  }
  dark.addEventListener("change", () => {
    for (const plot of plots) Plotly.relayout(plot, theme(plot.layout));
  });
  document.body.dataset.drawn = "yes";
}

async function copy(button) {
  const source = document.getElementById(button.dataset.copies);
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = button.dataset.done;
  } catch {
    // No clipboard for this page (a browser may refuse it to files): leave the text selected.
    const selection = window.getSelection();
    selection.selectAllChildren(source);
    button.textContent = document.execCommand("copy") ? button.dataset.done : button.dataset.failed;
  }
  setTimeout(() => { button.textContent = button.dataset.label; }, 2000);
}

for (const button of document.querySelectorAll("button[data-copies]")) {
  button.addEventListener("click", () => copy(button));
}
drawAll();
