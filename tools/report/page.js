// Shows one sample at a time.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { samples, steps } = data;
  const text = byId("text"), panel = byId("panel"), which = byId("which");
  if (!samples.length) return;

  let sample, options, current, head;  // current: offset of the selected token in the window; head: of attention

  const nats = (hundredths) => (hundredths / 100).toFixed(2);
  const atLeast = data.exact ? "" : "≥ ";  // before a lower bound
  const level = (hundredths) => steps.filter((step) => hundredths >= 100 * step).length;

  function spelled(id) {
    const token = sample.spelled[id];
    if (token !== undefined) return word(token);
    const element = make("span", "word unknown", `id ${id}`);
    element.title = "Does not occur in the texts that were read; use --tokenizer to spell it";
    return element;
  }

  function show(number) {
    sample = samples[number];
    current = undefined;
    head = 0;
    const from = sample.first;
    const part = sample.text.length < sample.tokens ? `, shown from ${from} to ${from + sample.text.length - 1}` : "";
    const mean = sample.mean_entropy === null ? "" : ` · mean entropy ${atLeast}${sample.mean_entropy.toFixed(2)} nats`;
    byId("about").replaceChildren(
      make("bdi", "", sample.source), ` · layer `, make("bdi", "", sample.layer),
      ` · ${sample.tokens} tokens${part}${mean} · key ${sample.key}`);
    options = sample.text.map((token, place) => {
      const option = make("span", "", token);
      option.id = `token-${place}`;
      option.tabIndex = -1;
      option.setAttribute("role", "option");
      option.setAttribute("aria-selected", "false");
      const entropy = sample.entropy[place];
      const bytes = sample.raw[from + place];
      const spoken = bytes ? `bytes ${bytes}` : token === "" ? "nothing" : visible(token);
      option.setAttribute("aria-label", `${spoken}, ${entropy === null ? "not stored" : `${atLeast}${nats(entropy)} nats`}`);
      if (entropy === null) option.classList.add("unstored");
      else option.classList.add(`e${level(entropy)}`);
      if (token.includes("\n")) option.classList.add("break");
      if (token === "") option.textContent = bytes ? "·" : "∅";
      return option;
    });
    const pieces = [];
    options.forEach((option, place) => {
      const gap = sample.gaps[from + place];
      if (gap !== undefined) pieces.push(make("span", "gap", gap));
      pieces.push(option);
    });
    text.replaceChildren(...pieces);
    const open = options.map((_, place) => place).filter((place) => sample.entropy[place] !== null);
    const first = open.slice(0, 80).reduce((a, b) => (sample.entropy[b] > sample.entropy[a] ? b : a), open[0] ?? 0);
    choose(first);
  }

  function choose(place) {
    if (current !== undefined) {
      options[current].setAttribute("aria-selected", "false");
      options[current + 1]?.classList.remove("came-next");
    }
    current = place;
    for (const option of options) option.tabIndex = -1;
    options[place].tabIndex = 0;
    options[place].setAttribute("aria-selected", "true");
    options[place + 1]?.classList.add("came-next");
    describe();
    mark();
    byId("status").textContent = panel.querySelector("h3").textContent + summary(options[place].getAttribute("aria-label"));
  }

  function summary(label) {
    const best = sample.best[sample.first + current];
    if (!best) return `: ${label}`;
    const id = best.ids[0], likeliest = visible(sample.spelled[id] ?? `id ${id}`);
    return `: ${label}; likeliest ${likeliest}, ${share(best.p[0])}`;
  }

  function describe() {
    const row = sample.first + current, entropy = sample.entropy[current], best = sample.best[row];
    const title = make("h3", "", `Row ${row}: what follows `);
    title.append(word(sample.text[current], sample.raw[row]));
    panel.replaceChildren(title);
    panel.scrollTop = 0;
    if (!best) {
      panel.append(make("p", "note", "The cache stores no distribution here: the row is not in the loss mask."));
    } else {
      panel.append(measures(entropy), ...alternatives(best));
    }
    const rows = sample.attention?.[row];
    if (rows) panel.append(make("h4", "", "Attention: where each attention head looks"), heads(rows), keys(rows[head] ?? []));
    const norms = [];
    if (sample.hidden?.[row]) sample.hidden[row].forEach((norm, i) => norms.push([`layer ${sample.layers[i]}`, norm]));
    if (sample.final?.[row] !== undefined) norms.push(["final", sample.final[row]]);
    if (norms.length) panel.append(make("h4", "", "Norms of hidden states"), list(norms));
  }

  function measures(entropy) {
    const group = make("dl", "measures");
    const values = [
      [atLeast + nats(entropy), "nats of entropy"],
      [atLeast + Math.exp(entropy / 100).toPrecision(3), "support"],
      [share(sample.stored[current]), "stored"],
    ];
    for (const [value, what] of values) {
      const pair = make("div");
      pair.append(make("dt", "", what), make("dd", "", value));
      group.append(pair);
    }
    return group;
  }

  function alternatives(best) {
    const found = table("expected", "", "probability"), body = found.lastChild;
    const next = sample.following[current], chance = sample.next[current];
    best.ids.forEach((id, i) => {
      body.append(line(spelled(id), ...(id === next && chance !== null ? [chance, "next"] : [best.p[i], ""])));
    });
    if (chance !== null && !best.ids.includes(next)) body.append(line(spelled(next), chance, "next"));
    const seen = best.p.reduce((sum, p) => sum + p, 0) + (chance !== null && !best.ids.includes(next) ? chance : 0);
    if (seen < 10000) body.append(line("all others", 10000 - seen, "total"));
    if (chance === null) return [found];
    return [found, make("p", "came", `came next, with ${share(chance)}`)];
  }

  function heads(rows) {
    const group = make("div", "heads");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", "Heads");
    rows.forEach((_, i) => {
      const button = make("button", "", `head ${sample.heads[i]}`);
      button.type = "button";
      button.setAttribute("aria-pressed", String(i === head));
      button.addEventListener("click", () => {
        head = i;
        describe();
        mark();
        panel.querySelectorAll("button")[i].focus();
      });
      group.append(button);
    });
    return group;
  }

  function keys(row) {
    const found = table("token", "", "weight"), body = found.lastChild;
    for (let i = 0; i < row.length; i += 2) {
      const place = row[i] - sample.first;
      const name = options[place] ? word(sample.text[place], sample.raw[row[i]]) : make("span", "word unknown");
      name.append(make("span", "kind", ` ${row[i]}`));
      body.append(line(name, row[i + 1], ""));
    }
    return found;
  }

  // Underlines the tokens that the selected attention head attends to.
  function mark() {
    for (const option of text.querySelectorAll(".a1, .a2, .a3, .a4")) option.classList.remove("a1", "a2", "a3", "a4");
    const row = sample.attention?.[sample.first + current]?.[head] ?? [];
    for (let i = 0; i < row.length; i += 2) {
      const strength = 1 + [500, 1500, 4000].filter((weight) => row[i + 1] >= weight).length;
      options[row[i] - sample.first]?.classList.add(`a${strength}`);
    }
  }

  function list(pairs) {
    const found = make("dl");
    for (const [name, value] of pairs) found.append(make("dt", "", name), make("dd", "", value === null ? "not finite" : value.toLocaleString("en")));
    return found;
  }

  samples.forEach((each, number) => {
    const mean = each.mean_entropy === null ? "" : ` · ${atLeast}${each.mean_entropy.toFixed(2)} nats`;
    const option = make("option", "", `${number + 1} · ${each.layer} · ${each.source}${mean}`);
    option.value = String(number);
    which.append(option);
  });
  which.addEventListener("change", () => show(Number(which.value)));
  selectable(text, () => options, choose);
  byId("viewer").hidden = false;
  show(0);
})();
