"use strict";
// Elements of a page. All text is put into the page as text, never as markup.
const byId = (id) => document.getElementById(id);

const make = (tag, className, content) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (content !== undefined) element.textContent = content;
  return element;
};

