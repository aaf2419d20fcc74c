// Draws every chart that can be seen, again when the colors or the width of the screen change kind.
"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 640px)");
  const page = document.documentElement;
  const drawn = new Map(); // figure → its view

  const style = (name) => getComputedStyle(page).getPropertyValue(`--${name}`).trim();
  const colors = (name) => style(name).split(/\s*,\s*/);

  function config(width) {
    const [soft, line, accent, warm] = ["soft", "line", "accent", "warm"].map(style);
    const font = getComputedStyle(document.body).fontFamily;
    const label = { labelColor: soft, labelFont: font, labelFontSize: 11, labelFontWeight: 400 };
    const title = { titleColor: soft, titleFont: font, titleFontSize: 11, titleFontWeight: 400 };
    const path = { fill: null, strokeCap: "round", strokeJoin: "round" };
    return {
      background: "transparent",
      font,
      padding: 0,
      autosize: { type: "fit-x", contains: "padding" },
      view: { stroke: null },
      axis: { ...label, ...title, gridColor: line, gridOpacity: 0.7, domain: false, ticks: false, labelPadding: 6, titlePadding: 8, titleLimit: width, labelLimit: 240 },
      axisX: { titleAnchor: "end", domain: true, domainColor: line, ticks: true, tickColor: line, tickSize: 4, labelPadding: 3 },
      axisY: { titleAngle: 0, titleAlign: "left", titleAnchor: "end", titleBaseline: "bottom", titleX: 0, titleY: -10 },
      legend: { ...label, ...title, titlePadding: 6, offset: 12, gradientThickness: 8, gradientLength: 200, gradientStrokeColor: null, titleAnchor: "start", titleLimit: width, tickCount: 4 },
      range: { category: colors("series"), ordinal: { scheme: colors("order") }, heatmap: colors("heat"), diverging: colors("signed") },
      style: {
        curve: { ...path, strokeWidth: 1.75 },
        join: { ...path, strokeWidth: 1.25, strokeOpacity: 0.55 },
        faint: { ...path, strokeWidth: 1, strokeOpacity: 0.35 },
        dot: { size: 60, opacity: 0 },
        point: { size: 26, opacity: 1, fillOpacity: 1 },
        band: { color: accent, fillOpacity: 0.2, stroke: null },
        median: { ...path, color: accent, strokeWidth: 2 },
        flat: { stroke: null, strokeWidth: 0 },
        threshold: { color: warm, strokeWidth: 1.25, strokeDash: [5, 4] },
        level: { color: warm, align: "right", baseline: "bottom", dy: -4, font, fontSize: 11 },
        interval: { color: accent, strokeWidth: 3, strokeCap: "round" },
        effect: { color: accent, size: 80, opacity: 1 },
      },
    };
  }

  async function draw(figure) {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    spec.params.find((param) => param.name === "name_length").value = narrow.matches ? 12 : 28;
    const plot = figure.querySelector(".plot");
    drawn.get(figure)?.finalize();
    try {
      const result = await vegaEmbed(plot, spec, {
        mode: "vega-lite",
        renderer: "svg",
        actions: false,
        ast: true, // expressions are interpreted: the page allows no eval
        config: config(plot.clientWidth),
        defaultStyle: false,
        tooltip: { disableDefaultStyle: true },
      });
      drawn.set(figure, result);
      colorKey(figure, result.view);
    } catch (error) {
      plot.textContent = `${document.body.dataset.undrawn} ${error.message}`;
      figure.classList.add("undrawn");
    }
  }

  function colorKey(figure, view) {
    for (const name of figure.querySelectorAll(".key li:not(.rule)")) {
      name.style.setProperty("--color", view.scale("color")(name.textContent));
    }
  }

  const seen = (figure) => !figure.closest("[hidden]");

  async function drawAll() {
    page.dataset.charts = "drawing";
    for (const figure of document.querySelectorAll("figure")) {
      if (seen(figure)) await draw(figure);
    }
    page.dataset.charts = "drawn";
  }

  async function choose(choice, wanted) {
    page.dataset.charts = "drawing";
    choice.querySelectorAll(":scope > div > .panel").forEach((panel, at) => (panel.hidden = at !== wanted));
    for (const figure of choice.querySelectorAll("figure")) {
      if (seen(figure)) await draw(figure);
    }
    page.dataset.charts = "drawn";
  }

  for (const choice of document.querySelectorAll(".choice")) {
    const select = choice.querySelector("select");
    select.addEventListener("change", () => choose(choice, select.selectedIndex));
  }
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  drawAll();
})();
