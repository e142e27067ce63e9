(() => {
  const data = JSON.parse(byId("data").textContent);
  const reader = byId("reader"), slider = byId("step"), at = byId("at"), main = document.querySelector("main");
  const figures = Array.from(document.querySelectorAll("figure[data-plot]"));
  const buttons = Array.from(reader.querySelectorAll("button"));
  const span = Math.max(1, data.last - data.first);

  const number = (value) => {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace("e+", "e");
    return value.toLocaleString("en", { maximumSignificantDigits: 4 });
  };

  // The point whose stretch of steps has `step` in it: the first that ends there or later.
  const place = (steps, step) => {
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1;
      else high = middle;
    }
    return low;
  };

  const hidden = () => new Set(buttons.filter((b) => b.getAttribute("aria-pressed") === "false").map((b) => b.dataset.run));

  function read() {
    const step = Number(slider.value), off = hidden(), several = data.names.length > 1;
    const x = (data.frame.left + (step - data.first) / span * data.frame.width).toFixed(1);
    at.textContent = `${step.toLocaleString("en")} of ${data.last.toLocaleString("en")}`;
    for (const figure of figures) {
      const plot = data.plots[Number(figure.dataset.plot)], parts = [];
      for (const [run, [steps, means, lows, highs]] of Object.entries(plot.runs)) {
        if (off.has(run)) continue;
        if (step > data.ends[Number(run) - 1]) {
          parts.push(several ? `${run}: –` : "–");
          continue;
        }
        const i = place(data.steps[steps], step), range = lows && lows[i] !== highs[i];
        const words = number(means[i]) + (range ? ` (${number(lows[i])} … ${number(highs[i])})` : "");
        parts.push(several ? `${run}: ${words}` : words);
      }
      figure.querySelector(".reading").textContent = parts.join(" · ") + (plot.unit ? ` ${plot.unit}` : "");
      const cursor = figure.querySelector(".cursor");
      cursor.setAttribute("d", cursor.getAttribute("d").replace(/^M[^ ]+/, `M${x}`));
    }
  }

  slider.addEventListener("input", read);
  reader.addEventListener("submit", (event) => event.preventDefault());
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(shown));
      main.classList.toggle(`off-${button.dataset.run}`, !shown);
      read();
    });
  }
  for (const figure of figures) {
    figure.querySelector("svg").addEventListener("pointermove", (event) => {
      const box = event.currentTarget.getBoundingClientRect();
      const across = (event.clientX - box.left) / box.width * event.currentTarget.viewBox.baseVal.width;
      slider.value = String(Math.round(data.first + (across - data.frame.left) / data.frame.width * span));
      read();
    });
  }
  reader.hidden = false;
  main.classList.add("reads");
  read(); // browsers restore the slider on reload
})();
