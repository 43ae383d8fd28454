// What happened, newest first, by kind and by words.
const KINDS = ["joined", "lost", "re-attached", "drained", "master"];
// As many as the master remembers, and some of its earlier starts.
const MOST = 1000;

const list = document.getElementById("events"), filter = document.getElementById("filter"), kinds = document.getElementById("kinds");
const wanted = new Set(KINDS);
let last = 0;

// Numbers count from one again when the master was started again.
export function restart() { last = 0; }

export function take(events) {
  for (const event of events.filter((event) => event.number > last)) {
    last = event.number;
    add(event);
  }
}

export function add({ at, kind, text, node }) {
  const line = document.createElement("li"), time = document.createElement("time"), words = document.createElement("span");
  const date = new Date(at);
  time.textContent = `${date.toLocaleTimeString([], { hour12: false })}.${String(date.getMilliseconds()).padStart(3, "0")}`;
  time.dateTime = date.toISOString();
  words.textContent = text;
  line.className = kind;
  if (node) line.dataset.node = node;
  line.append(time, words);
  line.hidden = !isWanted(line);
  list.prepend(line);
  while (list.childElementCount > MOST) list.lastElementChild.remove();
}

const isWanted = (line) => wanted.has(line.className) && `${line.className} ${line.textContent}`.toLowerCase().includes(filter.value.toLowerCase());

function show() {
  for (const line of list.children) line.hidden = !isWanted(line);
}

export function listen(choose) {
  for (const kind of KINDS) {
    const button = document.createElement("button");
    button.textContent = kind;
    button.className = kind;
    button.setAttribute("aria-pressed", true);
    button.addEventListener("click", () => {
      if (!wanted.delete(kind)) wanted.add(kind);
      button.setAttribute("aria-pressed", wanted.has(kind));
      show();
    });
    kinds.append(button);
  }
  filter.addEventListener("input", show);
  list.addEventListener("click", (event) => { const node = event.target.closest("li")?.dataset.node; if (node) choose(node); });
}
