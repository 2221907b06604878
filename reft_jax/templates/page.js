"use strict";

/** The page's data: zlib-compressed JSON in base64, in the element `data`. */
async function readData() {
  const packed = atob(document.getElementById("data").textContent.trim());
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes])
    .stream()
    .pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

/**
 * An element, as in element("p", {class: "note"}, "text", child).
 * Functions become listeners (`onclick`), false and null leave an attribute or
 * a child out, and text stays text: nothing is ever read as HTML.
 */
function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") made[name] = value;
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  const kept = children.flat(Infinity).filter((child) => child !== false && child != null);
  made.append(...kept.map((child) => child instanceof Node ? child : String(child)));
  return made;
}
