// Elements of the page, by id.

export const at = (id) => document.getElementById(id);

/** A new element like the one in a template. */
export const copy = (id) => at(id).content.firstElementChild.cloneNode(true);
