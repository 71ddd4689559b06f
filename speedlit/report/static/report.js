// The page's only script: it unfolds everything for print, and drives the record browser.
// Texts of models reach the page through text nodes alone: nothing here writes HTML.
"use strict";
(() => {
  const ROW = 58; // height of a row in the list, px
  const SPARE = 6; // rows drawn above and below what is seen
  const LONGEST = 1500; // words of a text that is compared word by word

  // What is folded away is printed too.
  const opened = [];
  addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details:not([open])")) { part.open = true; opened.push(part); } });
  addEventListener("afterprint", () => { while (opened.length) opened.pop().open = false; });

  const frame = document.getElementById("records");
  if (!frame || !frame.querySelector(".browser")) return;
  const list = frame.querySelector(".list"), rows = frame.querySelector(".rows"), lineage = frame.querySelector(".lineage");
  const form = frame.querySelector("form"), search = form.querySelector("input"), count = frame.querySelector(".tally");
  const selects = [...form.querySelectorAll("select")];
  const sources = JSON.parse(document.getElementById("sources").textContent);
  const all = []; // {prompt, record, source, kind, fate, revision, words}
  let found = [], at = -1, ready = false;

  // -- unpacking ------------------------------------------------------------------------------------------------

  async function unpack(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  }

  function take(prompt) {
    prompt.words = [prompt.task[1], prompt.topic[1], prompt.text].join("\n").toLowerCase();
    for (const record of prompt.records) {
      const texts = [...(record.f || [record.x]), ...((record.revision || {}).after || [])];
      all.push({
        prompt, record, kind: prompt.kind, source: sources[record.s], fate: record.fate,
        revision: record.revision ? record.revision.status : "none", words: texts.join("\n").toLowerCase(),
      });
    }
  }

  async function load() {
    for (const part of frame.querySelectorAll("script.part")) {
      (await unpack(part.textContent)).forEach(take);
      part.remove();
      count.textContent = `unpacking ... ${all.length.toLocaleString("en")} records`;
    }
    for (const select of selects) offer(select);
    ready = true;
    filter();
    fromAddress();
  }

  function offer(select) {
    const counts = new Map();
    for (const row of all) counts.set(row[select.dataset.filter], (counts.get(row[select.dataset.filter]) || 0) + 1);
    for (const [value, many] of [...counts].sort((a, b) => b[1] - a[1])) {
      select.append(make("option", { value }, `${value} (${many.toLocaleString("en")})`));
    }
  }

  // -- filters --------------------------------------------------------------------------------------------------

  // A word of 16 hex digits is an id; words in quotes are looked for together.
  function holds(row, word) {
    if (/^[0-9a-f]{16}$/.test(word)) {
      const { prompt, record } = row;
      return [record.id, record.g, record.triplet, prompt.id, prompt.task[0], prompt.topic[0]].includes(word);
    }
    return row.words.includes(word) || row.prompt.words.includes(word);
  }

  function filter() {
    if (!ready) return;
    const words = (search.value.toLowerCase().match(/"[^"]+"|\S+/g) || []).map((word) => word.replace(/^"(.+)"$/, "$1"));
    const wanted = selects.filter((select) => select.value).map((select) => [select.dataset.filter, select.value]);
    const kept = at >= 0 ? found[at] : null;
    found = all.filter((row) => wanted.every(([name, value]) => row[name] === value)
      && words.every((word) => holds(row, word)));
    count.textContent = `${found.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} records`;
    rows.style.height = `${found.length * ROW}px`;
    at = kept ? found.indexOf(kept) : -1;
    list.scrollTop = at > 0 ? at * ROW : 0;
    drawList();
  }

  // -- the list: only what is seen is in the page ------------------------------------------------------------------

  function drawList() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
    const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
    const drawn = [];
    for (let place = first; place < last; place++) drawn.push(drawRow(place));
    rows.replaceChildren(...drawn);
    if (at >= first && at < last) list.setAttribute("aria-activedescendant", `row-${at}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function drawRow(place) {
    const { record, kind, source, fate } = found[place];
    const row = make("div", { id: `row-${place}`, role: "option", class: "row" },
      make("span", { class: "text" }, record.f ? record.f.join(" | ") : record.x || "(no text)"),
      make("span", { class: "about" }, `${kind} | ${source} | ${fate}${record.rank ? ` | rank ${record.rank}` : ""}`));
    row.style.top = `${place * ROW}px`;
    row.setAttribute("aria-selected", String(place === at));
    row.setAttribute("aria-posinset", place + 1);
    row.setAttribute("aria-setsize", found.length);
    row.addEventListener("click", () => { choose(place); read(); });
    return row;
  }

  function choose(place) {
    if (!found.length) return;
    at = Math.min(Math.max(place, 0), found.length - 1);
    const top = at * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    drawList();
    show(found[at].prompt, found[at].record);
  }

  function read() {
    lineage.focus({ preventScroll: true });
    lineage.scrollTop = 0;
    if (lineage.getBoundingClientRect().top > innerHeight * 0.8 || matchMedia("(max-width: 56rem)").matches) lineage.scrollIntoView({ block: "start" });
  }

  const STEPS = {
    ArrowDown: () => at + 1, ArrowUp: () => at - 1, Home: () => 0, End: () => found.length - 1,
    PageDown: () => at + Math.floor(list.clientHeight / ROW), PageUp: () => at - Math.floor(list.clientHeight / ROW),
  };

  list.addEventListener("keydown", (event) => {
    if (event.key in STEPS) choose(STEPS[event.key]());
    else if ((event.key === "Enter" || event.key === " ") && found.length) { choose(Math.max(at, 0)); read(); }
    else return;
    event.preventDefault();
  });
  lineage.addEventListener("keydown", (event) => { if (event.key === "Escape") list.focus(); });

  // -- the lineage of one record -----------------------------------------------------------------------------------

  function show(prompt, record) {
    const source = sources[record.s], answers = prompt.records.filter((other) => other.s === record.s);
    lineage.replaceChildren(make("h3", {}, record.id ? `Record ${record.id}` : "An answer that is no record"), make("ol", { class: "steps" },
      step("Topic", prompt.topic[0], words(prompt.topic[1])),
      step("Task", prompt.task[0], words(prompt.task[1]), about(`${prompt.kind}; cell ${prompt.task[2]}; split ${prompt.task[3]}`)),
      step("Prompt", prompt.id, words(prompt.text), about(`${prompt.template}, used for ${prompt.use}`)),
      answers.length > 1 ? candidates(prompt, record, answers) : null,
      written(prompt, record, source),
      record.revision ? revision(prompt, record) : null,
      step("Outcome", record.triplet || "", words(record.fate), record.triplet ? about("the id is that of the triplet that the embedder reads") : null)));
    if (record.id) history.replaceState(null, "", `#record=${record.id}`);
  }

  function step(title, id, ...parts) {
    return make("li", {}, make("h4", {}, title, id ? make("code", {}, id) : null), ...parts);
  }

  function words(text) { return make("p", { class: "said" }, text); }
  function about(text) { return make("p", { class: "about" }, text); }

  function candidates(prompt, record, answers) {
    const order = [...answers].sort((a, b) => (a.rank || 99) - (b.rank || 99));
    const items = order.map((other) => {
      const place = other.rank ? `${other.rank}.` : "-";
      const button = make("button", { type: "button" }, make("span", { class: "rank" }, place),
        make("span", { class: "text" }, other.f ? other.f.join(" | ") : other.x || "(no text)"),
        make("span", { class: "about" }, [other.verdict, other.score === undefined ? "" : `score ${other.score}`, other.why].filter(Boolean).join(", ")));
      if (other === record) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => { show(prompt, other); lineage.focus({ preventScroll: true }); });
      return make("li", { class: other.verdict || "" }, button);
    });
    return step(`Answers to this prompt by the same writer: ${answers.length}`, "", make("ul", { class: "candidates" }, ...items),
      prompt.judge && answers.some((other) => other.verdict) ? about(`the judge: ${prompt.judge}`) : null);
  }

  function written(prompt, record, source) {
    if (!record.f) return step(`Answer of ${source}`, record.g, words(record.x || "(no text)"), about(`no record: ${record.why}`));
    return step(`Record, written by ${source}`, record.g, fields(prompt, (place) => record.f[place]),
      about(`parsed: ${record.by}; the id is that of the generation`));
  }

  function fields(prompt, text) {
    return make("dl", { class: "fields" }, ...prompt.keys.map((key, place) => make("div", {},
      make("dt", {}, key, (prompt.roles || [])[place] ? make("span", { class: "role" }, prompt.roles[place]) : null), make("dd", {}, text(place)))));
  }

  function revision(prompt, record) {
    const { by, status, reason, after } = record.revision;
    return step(`Revision by the ${by}: ${status}`, "", after ? fields(prompt, (place) => difference(record.f[place], after[place])) : null,
      reason ? about(reason) : null);
  }

  // Words that were taken out and put in, by the longest common subsequence.
  function difference(before, after) {
    const a = before.split(/(\s+)/), b = after.split(/(\s+)/), out = document.createDocumentFragment();
    if (before === after) { out.append(before); return out; }
    if (a.length > LONGEST || b.length > LONGEST) { out.append(make("del", {}, before), make("ins", {}, after)); return out; }
    const width = b.length + 1, common = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        common[i * width + j] = a[i] === b[j] ? common[(i + 1) * width + j + 1] + 1 : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
      }
    }
    const runs = [];
    const add = (kind, word) => { if (runs.length && runs[runs.length - 1][0] === kind) runs[runs.length - 1][1] += word; else runs.push([kind, word]); };
    let i = 0, j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) { add("", a[i]); i++; j++; }
      else if (j >= b.length || (i < a.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) add("del", a[i++]);
      else add("ins", b[j++]);
    }
    for (const [kind, text] of runs) out.append(kind ? make(kind, {}, text) : text);
    return out;
  }

  // -- small things ------------------------------------------------------------------------------------------------

  function make(name, attributes, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  function fromAddress() {
    const id = (location.hash.match(/^#record=([0-9a-f]{16})$/) || [])[1];
    const place = id ? found.findIndex((row) => row.record.id === id) : -1;
    if (place >= 0) { choose(place); read(); }
  }

  let waiting = 0;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
  form.addEventListener("change", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => { event.preventDefault(); filter(); });
  list.addEventListener("scroll", () => requestAnimationFrame(drawList));
  new ResizeObserver(drawList).observe(list);
  addEventListener("hashchange", fromAddress);
  load().catch((error) => { count.textContent = `The records could not be unpacked: ${error.message}`; console.error(error); });
})();
