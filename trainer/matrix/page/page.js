(() => {
  const pairs = byId("pairs");
  if (!pairs) return;
  const data = JSON.parse(byId("data").textContent);
  const verdict = byId("verdict"), whichPair = byId("which-pair"), whichTask = byId("which-task");

  const filter = sortedTable(pairs, {
    input: byId("filter"), status: byId("count"), more: byId("more"), limit: 100,
    also: (row) => verdict.value === "" || row.dataset.verdict === verdict.value,
  });
  verdict.addEventListener("change", filter);

  const named = (side) => `${side + 1} ${data.sides[side]}`;
  const badge = (side) => [make("span", "no", String(side + 1)), " ", make("bdi", "", data.sides[side])];
  const option = (value, words) => {
    const element = make("option", "", words);
    element.value = value;
    return element;
  };

  function show() {
    const [a, b] = whichPair.value.split(" ").map(Number), task = Number(whichTask.value);
    const found = data.pairs.find((pair) => pair[0] === a && pair[1] === b && pair[2] === task);
    if (!found) {
      byId("about").textContent = "These two are not compared on this task.";
      byId("items").replaceChildren();
      return;
    }
    const [, , , aBetter, bBetter, places] = found, all = aBetter + bBetter;
    byId("about").replaceChildren(
      ...badge(a), ` is better on ${aBetter.toLocaleString("en")} items, `, ...badge(b), ` on ${bBetter.toLocaleString("en")}`,
      all ? `; ${places.length} of these ${all.toLocaleString("en")} are shown.` : ".");
    byId("items").replaceChildren(...places.map((place, i) => card(data.texts[task][place], a, b, data.higher[task], i < 2)));
  }

  const mean = (scores) => scores.reduce((sum, score) => sum + score, 0) / Math.max(1, scores.length);

  function card(item, a, b, higher, open) {
    const found = make("details", "item"), title = make("summary"), difference = mean(item.by[a][0]) - mean(item.by[b][0]);
    const winner = difference > 0 === higher ? a : b, better = make("span", "winner"), answers = make("div", "answers");
    found.open = open;
    better.append(...badge(winner), " is better");
    title.append(better, " ", make("bdi", "id", item.id));
    if (item.cluster) title.append(" ", make("bdi", "cluster", item.cluster));
    title.append(" ", make("bdi", "start", item.prompt.length > 140 ? `${item.prompt.slice(0, 140)}…` : item.prompt));
    for (const side of [a, b]) answers.append(answer(side, ...item.by[side], side === winner));
    found.append(title, text("prompt", item.prompt), text("wanted", item.wanted), answers);
    return found;
  }

  function text(what, words) {
    const part = make("div", what), body = make("pre", words ? "" : "none", words || "not kept");
    body.dir = "auto";
    part.append(make("h3", "", what), body);
    return part;
  }

  function answer(side, scores, words, won) {
    const part = make("div", won ? "won" : "lost"), title = make("h3"), body = make("pre", words ? "" : "none", words || "no text kept");
    body.dir = "auto";
    const who = make("span");
    who.append(...badge(side));
    title.append(who, make("span", "score", `score ${scores.join(", ")}`));
    part.append(title, body);
    return part;
  }

  const values = [...new Set(data.pairs.map(([a, b]) => `${a} ${b}`))];
  const inOrder = (x, y) => x.split(" ")[0] - y.split(" ")[0] || x.split(" ")[1] - y.split(" ")[1];
  for (const value of values.sort(inOrder)) whichPair.append(option(value, value.split(" ").map((side) => named(Number(side))).join("  –  ")));
  const compared = new Set(data.pairs.map((pair) => pair[2]));
  data.tasks.forEach((task, place) => compared.has(place) && whichTask.append(option(String(place), task)));

  const choose = ([a, b, task]) => {
    whichPair.value = `${a} ${b}`;
    whichTask.value = String(task);
    show();
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-pair]");
    if (link) choose(data.pairs[Number(link.dataset.pair)]); // and the link goes to the section
  });
  for (const select of [whichPair, whichTask]) select.addEventListener("change", show);
  byId("viewer").hidden = false;
  choose(data.pairs[0]);
})();
