// Shows what a student with another tokenizer would be taught: over each piece of a text the teacher's tokens, below
// them the student's.
(() => {
  const { student } = JSON.parse(byId("data").textContent);
  if (!student || !student.samples.length) return;
  const pairs = byId("pairs"), panel = byId("student-panel"), which = byId("which-student");
  let tokens, options, current;  // tokens: of the student, each with the teacher's of its piece

  const shown = (token, part = "·") => (token.text === "" ? (token.raw ? part : "∅") : token.text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/\r/g, "␍"));
  const named = (token) => (token.raw ? `bytes ${token.raw}` : token.text === "" ? "nothing" : visible(token.text));
  const kindOf = (token) => (token.learned === 0 ? "not learned" : student.kinds[token.kind].name);
  const weights = (token) => (token.best ?? []).map(([, text, p]) => `${visible(text)} ${share(p)}`).join(", ");

  function show(number) {
    const sample = student.samples[number];
    const all = sample.tokens[1], part = sample.shown < all ? `, ${sample.shown} of them shown` : "";
    byId("about-student").replaceChildren(
      make("bdi", "", sample.source), " · layer ", make("bdi", "", sample.layer),
      ` · ${sample.tokens[0]} tokens of the teacher, ${all} of the student${part} · key ${sample.key}`);
    [tokens, options, current] = [[], [], undefined];
    pairs.replaceChildren(...sample.pieces.flatMap(piece));
    const taught = tokens.findIndex(({ token }) => token.best);
    choose(Math.max(0, taught));
  }

  function piece({ teacher, student: own }) {
    const pair = make("span", "pair"), over = make("span", "over"), under = make("span", "under");
    pair.setAttribute("role", "presentation");
    over.setAttribute("aria-hidden", "true");
    under.setAttribute("role", "presentation");
    for (const token of teacher) {
      const element = make("span", "token", shown(token, ""));
      element.title = `teacher: ${named(token)}, id ${token.id}`;
      over.append(element);
    }
    for (const token of own) {
      const option = make("span", `token ${token.learned === 0 ? "unlearned" : student.kinds[token.kind].colour}`, shown(token));
      const best = weights(token);
      option.id = `student-${options.length}`;
      option.tabIndex = -1;
      option.title = `${named(token)}, id ${token.id}: ${kindOf(token)}${best ? `; ${best}` : ""}`;
      option.setAttribute("role", "option");
      option.setAttribute("aria-selected", "false");
      option.setAttribute("aria-label", `${named(token)}, ${kindOf(token)}`);
      under.append(option);
      options.push(option);
      tokens.push({ token, teacher });
    }
    pair.append(over, under);
    return [...teacher, ...own].some((token) => token.text.endsWith("\n")) ? [pair, make("br")] : [pair];
  }

  function choose(place) {
    if (current !== undefined) options[current].setAttribute("aria-selected", "false");
    current = place;
    for (const option of options) option.tabIndex = -1;
    options[place].tabIndex = 0;
    options[place].setAttribute("aria-selected", "true");
    describe();
    byId("student-status").textContent = panel.querySelector("h3").textContent + `: ${kindOf(tokens[place].token)}; ${weights(tokens[place].token)}`;
  }

  function describe() {
    const { token, teacher } = tokens[current], title = make("h3", "", "Student token ");
    title.append(word(token.text, token.raw), ` ${token.id}`);
    panel.replaceChildren(title, make("p", "about", kindOf(token)));
    panel.scrollTop = 0;
    if (token.crosses) panel.append(make("p", "about", "It ends after the teacher token in which it begins."));
    if (teacher.length) {
      const over = make("p", "about", "Over it: ");
      teacher.forEach((each, i) => over.append(i ? " " : "", word(each.text, each.raw)));
      panel.append(over);
    }
    if (!token.best) {
      panel.append(make("p", "note", "The teacher says nothing about this token: its row has no target."));
      return;
    }
    const found = table("what the row before it learns", "", "weight"), body = found.lastChild;
    for (const [id, text, p] of token.best) body.append(line(word(text), p, id === token.id ? "next" : ""));
    if (token.rest > 0) body.append(line("all others", token.rest, "total"));
    panel.append(found);
  }

  student.samples.forEach((each, number) => {
    const option = make("option", "", `${number + 1} · ${each.layer} · ${each.source}`);
    option.value = String(number);
    which.append(option);
  });
  which.addEventListener("change", () => show(Number(which.value)));
  selectable(pairs, () => options, choose);
  byId("student-viewer").hidden = false;
  show(0);
})();
