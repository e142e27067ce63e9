// What both viewers of the page are made of. All text comes from the cache and is put into the page as text.
const share = (tenThousandths) =>
  tenThousandths === 0 ? "< 0.01 %" : `${(tenThousandths / 100).toFixed(tenThousandths < 1000 ? 2 : 1)} %`;

const visible = (token) =>
  token.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/\r/g, "␍").replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length));

const word = (token, bytes) => {
  const element = make("span", "word", bytes ? `‹${bytes}›` : token === "" ? "∅" : visible(token));
  element.title = token;
  return element;
};

const table = (...titles) => {
  const found = make("table"), top = make("tr");
  for (const title of titles) {
    const cell = make("th", title === "" ? "share" : "", title);
    cell.scope = "col";
    top.append(cell);
  }
  const start = make("thead");
  start.append(top);
  found.append(start, make("tbody"));
  return found;
};

const line = (name, probability, className) => {
  const row = make("tr", className), first = make("th"), bar = make("td", "share"), length = make("span", "length");
  first.scope = "row";
  first.append(name);
  length.style.width = `${Math.min(100, probability / 100)}%`;
  bar.append(length);
  row.append(first, bar, make("td", "", share(probability)));
  return row;
};

// Mouse and keyboard of a list of tokens; `options()` are its elements now, `choose(place)` selects one.
const selectable = (list, options, choose) => {
  function move(place) {
    const wanted = Math.max(0, Math.min(options().length - 1, place));
    for (const option of options()) option.tabIndex = -1;
    options()[wanted].tabIndex = 0;
    options()[wanted].focus();
  }

  // The nearest token on the line above or below.
  function onLine(place, direction) {
    const all = options(), from = all[place].getClientRects()[0];
    let best = place, distance = Infinity, line;
    for (let i = place + direction; i >= 0 && i < all.length; i += direction) {
      const box = all[i].getClientRects()[0];
      if (!box || Math.abs(box.top - from.top) < 4) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) >= 4) break;
      if (Math.abs(box.left - from.left) < distance) [best, distance] = [i, Math.abs(box.left - from.left)];
    }
    return best;
  }

  list.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (!option) return;
    choose(options().indexOf(option));
    option.focus({ preventScroll: true });
  });
  list.addEventListener("keydown", (event) => {
    const place = options().indexOf(document.activeElement);
    if (place < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = {
      ArrowRight: () => move(place + 1),
      ArrowLeft: () => move(place - 1),
      ArrowDown: () => move(onLine(place, 1)),
      ArrowUp: () => move(onLine(place, -1)),
      Home: () => move(0),
      End: () => move(options().length - 1),
      Enter: () => choose(place),
      " ": () => choose(place),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  });
};
