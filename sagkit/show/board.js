// Front end of sagkit's boards: controls, a picture, a refusal beside it. No dependencies, no build step, no network.
//
//   export default { render }     an anywidget: questions and answers are messages of the widget
//   mount(element, ask)           the same anywhere else; ask(question) is a promise of its answer
//
// A board of the kind "explore" is a map, a neighbourhood, a walk, look-alikes and pairs around one anchor; a board of
// the kind "picture" is one picture. What is shown is computed in Python; here it is placed, moved and saved.

export function render({ model, el }) {
  const waiting = new Map();
  let asked = 0;
  const hear = message => {
    waiting.get(message.id)?.(message.answer);
    waiting.delete(message.id);
  };
  model.on("msg:custom", hear);
  const ask = question => new Promise(resolve => {
    waiting.set(++asked, resolve);
    model.send({ id: asked, question });
  });
  const unmount = mount(el, ask);
  return () => { model.off("msg:custom", hear); unmount(); };
}

export default { render };

// Elements ------------------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !(element instanceof SVGElement)) element[name] = value;
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter(child => child != null && child !== false));
  return element;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const SHARED = { class: "same class", superclass: "same superclass", neither: "another class" };
const EDGES = { same: "same class", similarity: "similarity", mutual: "mutual" };
const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// Tab reaches one element of a group; arrow keys, Home and End move inside it.
function rove(group) {
  const items = () => [...group.querySelectorAll("[data-rove]")];
  const choose = item => items().forEach(other => other.setAttribute("tabindex", other === item ? "0" : "-1"));
  group.addEventListener("focusin", event => choose(event.target.closest("[data-rove]")));
  group.addEventListener("keydown", event => {
    const all = items(), at = all.indexOf(event.target.closest("[data-rove]"));
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    all[Math.max(0, Math.min(all.length - 1, to))].focus();
  });
  return () => choose(items()[0]);
}

// Controls ------------------------------------------------------------------------------------------------------------

function makeControls(described, change) {
  const fields = described.map(control => {
    const id = `sag-${control.name}-${Math.random().toString(36).slice(2)}`;
    const output = h("output", { htmlFor: id });
    const options = control.options ?? [];
    const attributes = { id, title: control.help, "data-control": control.name };
    let input, read, write;
    if (control.kind === "choice") {
      input = h("select", attributes, options.map(option => h("option", { value: option }, option)));
      read = () => input.value;
      write = value => { input.value = value; };
    } else if (control.kind === "tick") {
      input = h("input", { ...attributes, type: "checkbox" });
      read = () => input.checked;
      write = value => { input.checked = value; };
    } else if (control.kind === "number") {
      input = h("input", { ...attributes, type: "number", min: control.min, max: control.max, step: 1 });
      read = () => (Number.isInteger(input.valueAsNumber) ? input.valueAsNumber : null);
      write = value => { input.value = value; };
    } else {
      const scale = control.kind === "scale";
      const ends = scale ? { min: 0, max: options.length - 1, step: 1 } : { min: control.min, max: control.max, step: control.step };
      input = h("input", { ...attributes, type: "range", ...ends });
      read = () => (scale ? options[input.valueAsNumber] : input.valueAsNumber);
      write = value => { input.value = scale ? options.indexOf(value) : value; told(); };
      const told = () => {
        output.value = read();
        input.setAttribute("aria-valuetext", read());
        const share = (input.value - ends.min) / Math.max(1e-9, ends.max - ends.min);
        input.style.setProperty("--share", `${100 * share}%`);
      };
      input.addEventListener("input", told);
    }
    input.addEventListener("change", () => {
      const value = read();
      if (value === null || !input.checkValidity()) {
        change(null, `${control.label}: choose a whole number from ${control.min} to ${control.max}`);
      } else change({ [control.name]: value });
    });
    const label = h("label", { htmlFor: id }, control.label);
    const element = h("div", { className: `sag-control sag-${control.kind}` }, label, input, output);
    return { control, element, input, write };
  });
  const element = h("div", { className: "sag-controls", role: "group", ariaLabel: "settings" }, fields.map(field => field.element));
  const show = setting => fields.forEach(({ control, input, write }) => {
    write(setting[control.name]);
    if (control.only) input.disabled = setting[control.only[0]] !== control.only[1];
  });
  return { element, show };
}

// A board: what all kinds share ---------------------------------------------------------------------------------------

export function mount(el, ask) {
  const root = h("div", { className: "sag", role: "region" });
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's shortcuts stay out, and so does its notebook
  root.addEventListener("keydown", event => event.stopPropagation());
  const message = h("div", { className: "sag-refusal", role: "alert", hidden: true });
  const said = h("p", { className: "sag-says", role: "status" });
  const stage = h("div", { className: "sag-stage" });
  const frame = h("div", { className: "sag-frame" }, stage, message);
  const head = h("header", { className: "sag-head" });
  root.append(head, frame);
  el.append(root);
  let board = null, setting, first, controls, turn = 0, gone = false;
  const unwatch = watchTheme(root, () => board?.repaint?.());

  const refuse = text => {
    message.replaceChildren(h("b", null, "Not possible: "), text);
    message.hidden = false;
    stage.classList.add("sag-dimmed");
  };
  const accept = () => {
    message.hidden = true;
    stage.classList.remove("sag-dimmed");
  };
  const question = async asked => {
    try { return await ask(asked); } catch (error) { return { refused: error.message }; }
  };

  // Ask for another setting; of several on their way, the last one is shown.
  async function change(part, refusal) {
    if (part === null) return refuse(refusal);
    setting = { ...setting, ...part };
    controls.show(setting);
    const mine = ++turn;
    const slow = setTimeout(() => root.setAttribute("aria-busy", "true"), 250);
    const answer = await question({ about: "answer", setting });
    clearTimeout(slow);
    if (gone || mine !== turn) return;
    root.removeAttribute("aria-busy");
    if (answer.refused !== undefined) return refuse(answer.refused);
    accept();
    if (answer.setting) setting = answer.setting;
    board.show(answer);
    root.dataset.shown = mine;
  }

  (async () => {
    root.setAttribute("aria-busy", "true");
    const begin = await question({ about: "begin" });
    if (gone) return;
    if (begin.refused !== undefined) return refuse(begin.refused);
    setting = first = begin.setting;
    root.setAttribute("aria-label", begin.title);
    controls = makeControls(begin.controls, change);
    const reset = h("button", { type: "button", onclick: () => { board.reset?.(); change(first); } }, "Reset");
    const make = begin.kind === "explore" ? exploreBoard : pictureBoard;
    board = make({ root, stage, begin, question, change, say: text => { said.textContent = text; }, get setting() { return setting; } });
    head.append(h("h2", null, begin.title), h("span", { className: "sag-spacer" }), ...board.tools, reset, saveMenu(root, () => board.code?.()));
    root.insertBefore(controls.element, frame);
    root.append(said, h("p", { className: "sag-note" }, begin.credit ?? ""));
    await change({});
    board.started?.();
  })();
  return () => { gone = true; unwatch(); board?.end?.(); root.remove(); };
}

function pictureBoard({ stage, say }) {
  const image = h("img", { className: "sag-picture" });
  stage.append(image);
  return { tools: [], show: ({ url, says }) => { image.src = url; image.alt = says; say(says); } };
}

// Dark where what lies behind the board is dark, whoever painted it: a notebook's theme, an editor's, the system's.
function watchTheme(root, changed) {
  const look = () => {
    let behind = root.parentElement, colour = null;
    while (behind && !colour) {
      const [r, g, b, a = 1] = (getComputedStyle(behind).backgroundColor.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
      if (a > 0.5) colour = [r, g, b];
      behind = behind.parentElement;
    }
    const dark = colour ? 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] < 128 : false;
    if (root.dataset.theme === (dark ? "dark" : "light")) return;
    root.dataset.theme = dark ? "dark" : "light";
    changed();
  };
  look();
  const observer = new MutationObserver(() => setTimeout(look, 50));
  for (const place of [document.documentElement, document.body]) observer.observe(place, { attributes: true });
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", look);
  const placed = new ResizeObserver(look); // a notebook puts the board into its page after it was made
  placed.observe(root);
  return () => { observer.disconnect(); placed.disconnect(); system.removeEventListener("change", look); };
}

// Exploring -----------------------------------------------------------------------------------------------------------

function exploreBoard(board) {
  const { root, stage, begin, question, change, say } = board;
  const { names, labels, classes } = begin;
  const small = begin.side < 64; // few pixels: drawn as squares rather than blurred
  const className = row => (labels ? classes[labels[row]] : "");
  const nameOf = row => (labels && !names[row].startsWith(className(row)) ? `${names[row]}, ${className(row)}` : names[row]);
  const last = text => text.split("/").at(-1);
  let answer = null, step = 0, mode = labels ? "same" : "similarity", before = [];

  const pictures = pictureStore(question, () => map.paint());
  const tooltip = makeTooltip(root, pictures, small);
  const picture = (row, className = "") => {
    const image = h("img", { alt: nameOf(row), className: `${className} ${small ? "sag-crisp" : ""}`, draggable: false });
    pictures.get(row).then(url => { image.src = url; });
    return image;
  };
  const goTo = row => {
    if (row === answer.setting.anchor) return;
    before.push(answer.setting.anchor);
    back.disabled = false;
    change({ anchor: row, walk: 0 });
  };
  // A button with the picture of a row that becomes the anchor when it is pressed, with its name beside the pointer.
  const pictureButton = (row, { label, act = () => goTo(row), ...more } = {}) => h("button", {
    type: "button", "data-rove": "", "data-row": row, ariaLabel: label ?? `${nameOf(row)}: make it the anchor`, onclick: act,
    onpointerenter: event => tooltip.show(row, event), onpointerleave: tooltip.hide, ...more,
  }, picture(row));

  const back = h("button", { type: "button", disabled: true, onclick: () => {
    const row = before.pop();
    back.disabled = !before.length;
    change({ anchor: row, walk: 0 });
  } }, "Back");

  const map = mapPart({ begin, root, pictures, tooltip, nameOf, goTo, change, state: () => ({ answer, step }), say });
  const graph = graphPart({ begin, root, pictures, tooltip, nameOf, goTo, small, mode, hasLabels: Boolean(labels), changed: chosen => { mode = chosen; } });
  const walk = walkPart({ pictureButton, nameOf, last, className, change, step: value => { step = value; map.paint(); graph.paint(answer, step); } });
  const alike = listPart("Look-alikes", "most similar images, by the cosine of features");
  const pairs = listPart("Pairs", "where the anchor's walks end");
  const purity = h("div", { className: "sag-purity" });
  pairs.element.append(purity);
  stage.append(
    h("div", { className: "sag-row" }, map.element, graph.element), walk.element,
    h("div", { className: "sag-row" }, alike.element, pairs.element),
  );

  function showAlike() {
    alike.list.replaceChildren(...answer.alike.map(({ row, similarity, same }, i) => h("li", { className: `sag-${same}` },
      pictureButton(row, { label: `look-alike ${i + 1}, ${nameOf(row)}, similarity ${similarity.toFixed(2)}${same && `, ${SHARED[same]}`}` }),
      h("span", null, `${i + 1} · ${similarity.toFixed(2)}`))));
    alike.ready();
  }

  function showPairs() {
    const { walks } = answer.setting;
    const most = Math.max(...answer.pairs.map(pair => pair.weight), 1e-9);
    pairs.list.replaceChildren(...answer.pairs.map(({ row, walks: led, weight, same }) => h("li", { className: `sag-${same}` },
      pictureButton(row, {
        label: `partner ${nameOf(row)}, total weight ${weight.toFixed(2)}, ${count(led.length, "walk")}: show the walk that led there`,
        act: () => change({ walk: led[(led.indexOf(answer.setting.walk) + 1) % led.length] }),
      }),
      h("span", { className: "sag-bar", style: `--share: ${(100 * weight) / most}%` }),
      h("span", null, weight.toFixed(2)))));
    pairs.ready();
    const gone = answer.home ? `; ${count(answer.home, "walk")} ended at home and made no pair` : "";
    pairs.note.textContent = `${count(answer.pairs.length, "partner")} of ${count(walks, "walk")}${gone}; the figure is the pair's total weight`;
    purity.replaceChildren(...(answer.purity.length ? [h("table", null,
      h("caption", null, `Purity of all ${count(answer.images * walks, "walk")}, a stroke at chance`),
      h("thead", null, h("tr", null, ["shared", "plain", "", "weighted", "chance"].map(text => h("th", { scope: "col" }, text)))),
      h("tbody", null, answer.purity.map(({ kind, share, weighted, chance }) => h("tr", null,
        h("th", { scope: "row" }, kind), h("td", null, figure(share)),
        h("td", null, h("span", { className: "sag-share", style: `--share: ${100 * (share ?? 0)}%; --chance: ${100 * chance}%` })),
        h("td", null, figure(weighted)), h("td", null, figure(chance)))))) ] : []));
  }

  const figure = value => (value === null ? "none" : value.toFixed(3));
  const describe = () => {
    const { steps, weight } = answer.walk;
    const end = steps.at(-1);
    const home = end.row === steps[0].row;
    return `Anchor ${answer.setting.anchor}, ${nameOf(answer.setting.anchor)}. Walk ${steps.map(at => at.row).join(" → ")}: `
      + (home ? "it ends at home, so that it makes no pair." : `its pair weighs ${weight.toFixed(2)}${end.same && ` and joins two of ${end.same === "neither" ? "different classes" : `the ${SHARED[end.same]}`}`}.`)
      + (answer.images < names.length ? ` The graph is that of a batch of ${answer.images}.` : "");
  };

  return {
    tools: [back, ...map.tools],
    show(found) {
      const moved = !answer || found.setting.anchor !== answer.setting.anchor;
      answer = found;
      step = answer.walk.steps.length - 1;
      root.dataset.anchor = answer.setting.anchor;
      pictures.want([...answer.nodes, ...answer.alike, ...answer.pairs, ...answer.walk.steps].map(item => item.row));
      map.show(moved);
      graph.paint(answer, step);
      walk.show(answer);
      showAlike();
      showPairs();
      say(describe());
    },
    async started() {
      const better = await question({ about: "map" });
      map.refine(better);
    },
    reset() { before = []; back.disabled = true; walk.stop(); map.reset(); },
    repaint() { map.paint(); if (answer) graph.paint(answer, step); },
    code: () => answer?.code,
    end() { walk.stop(); map.end(); },
  };
}

function listPart(title, note) {
  const list = h("ol", { className: "sag-list" });
  const told = h("p", { className: "sag-note" }, note);
  const element = h("section", { className: "sag-part", ariaLabel: title }, h("h3", null, title), told, list);
  return { element, list, note: told, ready: rove(list) };
}

// Pictures by row, asked for in parcels and kept.
function pictureStore(question, arrived) {
  const urls = new Map(), images = new Map(), wanted = new Set();
  let asking = false;
  async function fetchAll() {
    if (asking) return;
    asking = true;
    await null; // what is wanted in the same moment comes in one parcel
    while (wanted.size) {
      const rows = [...wanted].slice(0, 100);
      const { urls: found } = await question({ about: "pictures", rows });
      rows.forEach((row, i) => {
        wanted.delete(row);
        if (found) hold(row).resolve(found[i]);
      });
      if (!found) break;
    }
    asking = false;
  }
  function hold(row) {
    if (!urls.has(row)) {
      const entry = {};
      entry.promise = new Promise(resolve => { entry.resolve = resolve; });
      urls.set(row, entry);
    }
    return urls.get(row);
  }
  const want = rows => {
    for (const row of rows) if (!urls.has(row)) { hold(row); wanted.add(row); }
    if (wanted.size) fetchAll();
  };
  return {
    want,
    get: row => { want([row]); return hold(row).promise; },
    // The decoded image if it is there; otherwise it is fetched, and `arrived` is called later.
    drawn(row) {
      if (images.has(row)) return images.get(row);
      images.set(row, null);
      want([row]);
      hold(row).promise.then(url => {
        const image = new Image();
        image.onload = () => { images.set(row, image); arrived(); };
        image.src = url;
      });
      return null;
    },
  };
}

function makeTooltip(root, pictures, small) {
  const image = h("img", { alt: "", className: small ? "sag-crisp" : "" }), text = h("span");
  const box = h("div", { className: "sag-tip", hidden: true, ariaHidden: "true" }, image, text);
  root.append(box);
  let shown = null;
  const hide = () => { shown = null; box.hidden = true; };
  return {
    hide,
    show(row, event, name = event.currentTarget?.ariaLabel ?? "") {
      const inside = root.getBoundingClientRect();
      const x = event.clientX - inside.left, y = event.clientY - inside.top;
      if (shown !== row) {
        shown = row;
        image.removeAttribute("src");
        pictures.get(row).then(url => { if (shown === row) image.src = url; });
      }
      text.textContent = name.split(":")[0];
      box.hidden = false;
      box.style.left = `${Math.min(x + 16, inside.width - 190)}px`;
      box.style.top = `${Math.max(4, y - 80)}px`;
    },
  };
}

// Map -----------------------------------------------------------------------------------------------------------------

function mapPart({ begin, root, pictures, tooltip, nameOf, goTo, change, state, say }) {
  const n = begin.names.length;
  const canvas = h("canvas", { tabIndex: 0, role: "application" });
  const title = h("h3", null, "Map");
  const note = h("p", { className: "sag-note" });
  const lassoButton = h("button", { type: "button", ariaPressed: "false", title: "or hold Shift and drag", onclick: () => arm(!armed) }, "Lasso a batch");
  const everyone = h("button", { type: "button", hidden: true, onclick: () => change({ batch: null }) }, "All images");
  const zoomButtons = [["+", "zoom in", 1.5], ["−", "zoom out", 1 / 1.5]].map(([sign, ariaLabel, by]) =>
    h("button", { type: "button", ariaLabel, onclick: () => zoom(by, width / 2, height / 2) }, sign));
  const element = h("section", { className: "sag-part sag-map", ariaLabel: "map" },
    h("div", { className: "sag-bar-of-tools" }, title, note, h("span", { className: "sag-spacer" }), everyone, lassoButton, ...zoomButtons),
    h("div", { className: "sag-canvas" }, canvas), legendOf(begin.labels ? [["class", "anchor's class"], ...(begin.groups ? [["superclass", "its superclass"]] : []), ["neither", "others"]] : []));
  const pen = canvas.getContext("2d");
  let places = normalised(begin.map.xy), width = 600, height = 460, view = { k: 1, x: 0, y: 0 };
  let hover = null, cursor = null, lasso = null, armed = false, drag = null, painting = 0, inBatch = null;
  name(begin.map.name);

  function name(of) {
    note.textContent = `${of} of the features`;
    canvas.setAttribute("aria-label", `Map of ${count(n, "image")}, ${of}. Arrow keys move from image to image, Enter makes one `
      + "the anchor, plus and minus zoom, 0 shows all, b takes the images in view as the batch, Escape takes all images again.");
  }
  function arm(on) {
    armed = on;
    lassoButton.ariaPressed = String(on);
    canvas.style.cursor = on ? "crosshair" : "";
  }
  const margin = 26;
  const at = row => [
    view.x + view.k * (margin + places[row][0] * (width - 2 * margin)),
    view.y + view.k * (margin + (1 - places[row][1]) * (height - 2 * margin)),
  ];
  const seen = ([x, y]) => x > -20 && y > -20 && x < width + 20 && y < height + 20;

  function paint() {
    if (!painting) painting = requestAnimationFrame(draw);
  }

  function draw() {
    painting = 0;
    const ratio = Math.max(2, devicePixelRatio || 1);
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const colour = palette(root), { answer, step } = state();
    const anchor = answer?.setting.anchor, kind = kinds(anchor);
    const size = n > 3000 ? 2 : n > 600 ? 2.6 : 3.4;
    for (const what of ["neither", "superclass", "class"]) { // what is shared with the anchor lies on top
      pen.fillStyle = colour[what];
      for (let row = 0; row < n; row++) {
        if (kind(row) !== what) continue;
        const [x, y] = at(row);
        if (!seen([x, y])) continue;
        pen.globalAlpha = inBatch && !inBatch.has(row) ? 0.15 : what === "neither" ? 0.55 : 0.95;
        pen.beginPath();
        pen.arc(x, y, size, 0, 7);
        pen.fill();
      }
    }
    pen.globalAlpha = 1;
    const path = answer ? answer.walk.steps.map(one => one.row) : [];
    drawThumbnails(path, kind, colour);
    if (answer) drawWalk(path.slice(0, step + 1), colour);
    for (const [row, paintWith, radius] of [[anchor, colour.ink, 23], [cursor, colour.walk, 21], [hover, colour.ink, 19]]) {
      if (row == null) continue;
      const [x, y] = at(row);
      pen.strokeStyle = paintWith;
      pen.lineWidth = row === anchor ? 3 : 1.5;
      pen.strokeRect(x - radius, y - radius, 2 * radius, 2 * radius);
    }
    if (lasso) {
      pen.beginPath();
      lasso.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
      pen.closePath();
      pen.fillStyle = colour.walk;
      pen.globalAlpha = 0.12;
      pen.fill();
      pen.globalAlpha = 1;
      pen.strokeStyle = colour.walk;
      pen.lineWidth = 1.5;
      pen.stroke();
    }
  }

  // As many thumbnails as have room, those of walk and neighbourhood first; none covers another.
  function drawThumbnails(path, kind, colour) {
    const side = n <= 80 ? 44 : 32, taken = new Map(), cell = side + 3;
    const { answer } = state();
    const order = [...new Set([...path, ...(answer ? answer.nodes.map(node => node.row) : [])])];
    const first = order.length;
    const draw = row => {
      const place = at(row);
      if (!seen(place)) return;
      const [cx, cy] = place.map(v => Math.floor(v / cell));
      for (let i = -1; i <= 1; i++) for (let j = -1; j <= 1; j++) for (const other of taken.get(`${cx + i},${cy + j}`) ?? []) {
        if (Math.abs(other[0] - place[0]) < cell && Math.abs(other[1] - place[1]) < cell) return;
      }
      const key = `${cx},${cy}`;
      taken.set(key, [...(taken.get(key) ?? []), place]);
      const image = pictures.drawn(row), [x, y] = place;
      if (!image) return;
      pen.globalAlpha = inBatch && !inBatch.has(row) ? 0.15 : 1;
      pen.imageSmoothingEnabled = begin.side >= 64;
      pen.drawImage(image, x - side / 2, y - side / 2, side, side);
      pen.strokeStyle = kind(row) === "neither" ? colour.line : colour[kind(row)];
      pen.lineWidth = kind(row) === "neither" ? 1 : 2;
      pen.strokeRect(x - side / 2, y - side / 2, side, side);
    };
    for (let i = 0; i < first; i++) draw(order[i]);
    for (let row = 0; row < n; row++) if (!order.includes(row)) draw(row);
    pen.globalAlpha = 1;
  }

  function drawWalk(path, colour) {
    pen.lineJoin = "round";
    for (const [paintWith, wide] of [[colour.paper, 6], [colour.walk, 3]]) {
      pen.strokeStyle = paintWith;
      pen.lineWidth = wide;
      pen.beginPath();
      path.forEach((row, i) => (i ? pen.lineTo(...at(row)) : pen.moveTo(...at(row))));
      pen.stroke();
    }
    numbersOf(path).forEach((numbers, row) => {
      const [x, y] = at(row), text = numbers.join("·");
      pen.font = "bold 12px system-ui, sans-serif";
      const wide = Math.max(18, pen.measureText(text).width + 8);
      pen.fillStyle = colour.walk;
      pen.beginPath();
      pen.roundRect(x - 16 - wide / 2, y - 25, wide, 18, 9);
      pen.fill();
      pen.fillStyle = "white";
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      pen.fillText(text, x - 16, y - 15.5);
    });
  }

  const kinds = anchor => row => {
    if (!begin.labels || anchor == null) return "neither";
    if (begin.labels[row] === begin.labels[anchor]) return "class";
    return begin.groups && begin.groups[row] === begin.groups[anchor] ? "superclass" : "neither";
  };

  function nearest(x, y, reach = 18) {
    let best = null, least = reach * reach;
    for (let row = 0; row < n; row++) {
      const [px, py] = at(row), d = (px - x) ** 2 + (py - y) ** 2;
      if (d < least) { least = d; best = row; }
    }
    return best;
  }

  function zoom(by, x, y) {
    const k = Math.max(0.8, Math.min(60, view.k * by));
    view = { k, x: x - ((x - view.x) * k) / view.k, y: y - ((y - view.y) * k) / view.k };
    paint();
  }
  const showAll = () => { view = { k: 1, x: 0, y: 0 }; paint(); };
  const pointer = event => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  canvas.addEventListener("wheel", event => {
    if (document.activeElement !== canvas && !event.ctrlKey && !event.metaKey) return; // the page scrolls on
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 300), ...pointer(event));
  }, { passive: false });
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    const place = pointer(event);
    if (armed || event.shiftKey) lasso = [place];
    else drag = { from: place, view, moved: false };
    tooltip.hide();
  });
  canvas.addEventListener("pointermove", event => {
    const place = pointer(event);
    if (lasso) lasso.push(place);
    else if (drag) {
      const [dx, dy] = [place[0] - drag.from[0], place[1] - drag.from[1]];
      drag.moved ||= Math.hypot(dx, dy) > 4;
      if (drag.moved) view = { k: drag.view.k, x: drag.view.x + dx, y: drag.view.y + dy };
    } else {
      hover = nearest(...place);
      canvas.style.cursor = armed ? "crosshair" : hover === null ? "grab" : "pointer";
      if (hover === null) tooltip.hide();
      else tooltip.show(hover, event, nameOf(hover));
    }
    paint();
  });
  canvas.addEventListener("pointerup", event => {
    if (lasso) {
      const inside = rowsInside(lasso);
      lasso = null;
      arm(false);
      if (inside.length) take(inside);
    } else if (drag && !drag.moved) {
      const row = nearest(...pointer(event));
      if (row !== null) { cursor = null; goTo(row); }
    }
    drag = null;
    paint();
  });
  canvas.addEventListener("pointerleave", () => { hover = null; tooltip.hide(); paint(); });
  canvas.addEventListener("blur", () => { cursor = null; paint(); });
  canvas.addEventListener("keydown", event => {
    const towards = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (towards) walkCursor(towards);
    else if (event.key === "Enter" && cursor !== null) goTo(cursor);
    else if (event.key === "+" || event.key === "=") zoom(1.5, ...(cursor === null ? [width / 2, height / 2] : at(cursor)));
    else if (event.key === "-") zoom(1 / 1.5, width / 2, height / 2);
    else if (event.key === "0") showAll();
    else if (event.key === "b") take([...Array(n).keys()].filter(row => { const [x, y] = at(row); return x >= 0 && y >= 0 && x <= width && y <= height; }));
    else if (event.key === "Escape") change({ batch: null });
    else return;
    event.preventDefault();
  });

  // The image nearest in that direction, sideways counting double.
  function walkCursor([dx, dy]) {
    const from = cursor ?? state().answer.setting.anchor, [x, y] = at(from);
    let best = null, least = Infinity;
    for (let row = 0; row < n; row++) {
      if (row === from) continue;
      const [px, py] = at(row), along = (px - x) * dx + (py - y) * dy, across = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      if (along <= 0) continue;
      const d = along + 2 * across;
      if (d < least) { least = d; best = row; }
    }
    cursor = best ?? from;
    const [cx, cy] = at(cursor);
    if (cx < 0 || cy < 0 || cx > width || cy > height) view = { ...view, x: view.x + width / 2 - cx, y: view.y + height / 2 - cy };
    say(`${nameOf(cursor)}. Enter makes it the anchor.`);
    paint();
  }

  function rowsInside(polygon) {
    const path = new Path2D();
    polygon.forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
    pen.setTransform(1, 0, 0, 1, 0, 0);
    return [...Array(n).keys()].filter(row => pen.isPointInPath(path, ...at(row)));
  }

  // A batch; the anchor stays where it is in it, and is else the image nearest to the batch's middle.
  function take(rows) {
    const { answer } = state();
    if (rows.includes(answer.setting.anchor)) return change({ batch: rows });
    const middle = [0, 1].map(i => rows.reduce((sum, row) => sum + places[row][i], 0) / rows.length);
    const away = row => Math.hypot(places[row][0] - middle[0], places[row][1] - middle[1]);
    change({ batch: rows, anchor: rows.reduce((best, row) => (away(row) < away(best) ? row : best)), walk: 0 });
  }

  const sized = new ResizeObserver(() => {
    const box = canvas.parentElement.getBoundingClientRect();
    if (!box.width) return;
    [width, height] = [box.width, box.height];
    paint();
  });
  sized.observe(canvas.parentElement);

  return {
    element,
    tools: [],
    paint,
    show(moved) {
      const { answer } = state(), { batch, anchor } = answer.setting;
      inBatch = batch && new Set(batch);
      everyone.hidden = !batch;
      lassoButton.textContent = batch ? `Batch of ${batch.length}: lasso another` : "Lasso a batch";
      const [x, y] = at(anchor);
      if (moved && (x < 0 || y < 0 || x > width || y > height)) view = { ...view, x: view.x + width / 2 - x, y: view.y + height / 2 - y };
      paint();
    },
    refine(better) {
      root.dataset.map = better.refused === undefined ? better.name : "PCA";
      if (better.refused !== undefined) { note.textContent = `PCA of the features (no UMAP: ${better.refused})`; return; }
      name(better.name);
      if (!better.xy) return;
      const from = places, to = normalised(better.xy), begun = performance.now();
      const move = now => {
        const t = still() ? 1 : Math.min(1, (now - begun) / 900), ease = t * t * (3 - 2 * t);
        places = t === 1 ? to : to.map(([x, y], i) => [from[i][0] + ease * (x - from[i][0]), from[i][1] + ease * (y - from[i][1])]);
        paint();
        if (t < 1) requestAnimationFrame(move);
      };
      requestAnimationFrame(move);
    },
    reset() { showAll(); arm(false); cursor = null; },
    end() { sized.disconnect(); cancelAnimationFrame(painting); },
  };
}

function normalised(xy) {
  const ends = [0, 1].map(i => {
    let low = Infinity, high = -Infinity;
    for (const point of xy) { low = Math.min(low, point[i]); high = Math.max(high, point[i]); }
    return [low, high > low ? high - low : 1];
  });
  return xy.map(point => [(point[0] - ends[0][0]) / ends[0][1], (point[1] - ends[1][0]) / ends[1][1]]);
}

// Which steps of a walk are at each node, in order.
function numbersOf(path) {
  const numbers = new Map();
  path.forEach((row, i) => numbers.set(row, [...(numbers.get(row) ?? []), i]));
  return numbers;
}

function palette(root) {
  const style = getComputedStyle(root);
  return Object.fromEntries(["ink", "paper", "line", "walk", "class", "superclass", "neither"].map(name => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function legendOf(entries) {
  return h("ul", { className: "sag-legend" }, entries.map(([kind, text]) => h("li", null, h("i", { className: `sag-key sag-key-${kind}` }), text)));
}

// Neighbourhood -------------------------------------------------------------------------------------------------------

function graphPart({ begin, root, pictures, tooltip, nameOf, goTo, small, mode, hasLabels, changed }) {
  const picture = s("svg", { viewBox: "-1.04 -1.04 2.08 2.08", role: "group", "aria-label": "neighbourhood of the anchor" });
  const options = Object.entries(EDGES).filter(([kind]) => hasLabels || kind !== "same");
  const choice = h("select", { ariaLabel: "edges are coloured by", onchange: () => { mode = choice.value; changed(mode); paint(...shown); } },
    options.map(([value, text]) => h("option", { value, selected: value === mode }, `edges by ${text}`)));
  const note = h("p", { className: "sag-note" }), legend = h("div"), facts = h("p", { className: "sag-note sag-facts" });
  const element = h("section", { className: "sag-part sag-graph", ariaLabel: "neighbourhood" },
    h("div", { className: "sag-bar-of-tools" }, h("h3", null, "Neighbourhood"), note, h("span", { className: "sag-spacer" }), choice),
    picture, legend, facts);
  const ready = rove(picture);
  let shown = [];

  const colourOf = edge => {
    if (mode === "same") return `sag-edge-${edge.same}`;
    if (mode === "mutual") return edge.mutual ? "sag-edge-mutual" : "sag-edge-single";
    return "sag-edge-similar";
  };

  function paint(answer, step) {
    if (!answer) return;
    shown = [answer, step];
    const focused = picture.contains(document.activeElement) ? document.activeElement.dataset.row : null;
    const place = new Map(answer.nodes.map(node => [node.row, node.place]));
    const anchor = answer.setting.anchor, heaviest = Math.max(...answer.edges.map(edge => edge.weight), 1e-9);
    const path = answer.walk.steps.slice(0, step + 1), numbers = numbersOf(path.map(one => one.row));
    const line = edge => {
      const [a, b] = [place.get(edge.from), place.get(edge.to)], own = edge.from === anchor || edge.to === anchor;
      return s("line", {
        x1: a[0], y1: a[1], x2: b[0], y2: b[1], class: `sag-edge ${colourOf(edge)}`,
        "stroke-width": (own ? 0.008 : 0.004) + (own ? 0.018 : 0.008) * (edge.weight / heaviest),
        opacity: own ? 1 : 0.4, ...(mode === "similarity" ? { style: `--share: ${Math.round(100 * Math.max(0, edge.similarity))}%` } : {}),
      });
    };
    const node = ({ row, place: [x, y, side], same, ring }) => {
      const image = s("image", { x: x - side / 2, y: y - side / 2, width: side, height: side, preserveAspectRatio: "xMidYMid slice", class: small ? "sag-crisp" : null });
      pictures.get(row).then(url => image.setAttribute("href", url));
      const on = numbers.get(row);
      const label = `${nameOf(row)}${ring ? `, ${ring === 1 ? "neighbour" : `${ring} steps away`}` : ", the anchor"}${on ? `, on the walk at ${on.join(", ")}` : ""}`;
      const item = s("g", { tabindex: "-1", role: "button", "data-rove": "", "data-row": row, "aria-label": label, class: `sag-node sag-${same} ${ring ? "" : "sag-anchor"} ${on ? "sag-on-walk" : ""}` },
        image, s("rect", { x: x - side / 2, y: y - side / 2, width: side, height: side }));
      if (on) {
        const text = on.join("·"), wide = Math.max(0.085, 0.03 + 0.036 * text.length);
        item.append(s("rect", { class: "sag-badge", x: x - side / 2 - wide / 2, y: y - side / 2 - 0.045, width: wide, height: 0.085, rx: 0.042 }),
          s("text", { class: "sag-badge-text", x: x - side / 2, y: y - side / 2 }, text));
      }
      item.addEventListener("click", () => goTo(row));
      item.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); goTo(row); } });
      item.addEventListener("pointermove", event => tooltip.show(row, event, label));
      item.addEventListener("pointerleave", tooltip.hide);
      return item;
    };
    const hop = (before, after, restart) => {
      const [a, b] = [place.get(before.row), place.get(after.row)];
      if (before.row === after.row) return null;
      const bend = 0.12, middle = [(a[0] + b[0]) / 2 - bend * (b[1] - a[1]), (a[1] + b[1]) / 2 + bend * (b[0] - a[0])];
      const away = Math.hypot(b[0] - middle[0], b[1] - middle[1]), reach = Math.min(0.7 * away, b[2] / 2 + 0.03);
      const tip = [b[0] - ((b[0] - middle[0]) / away) * reach, b[1] - ((b[1] - middle[1]) / away) * reach];
      const d = `M${a[0]} ${a[1]} Q${middle[0]} ${middle[1]} ${tip[0]} ${tip[1]}`;
      const angle = (Math.atan2(tip[1] - middle[1], tip[0] - middle[0]) * 180) / Math.PI;
      return s("g", { class: `sag-hop ${restart ? "sag-restart" : ""}` }, s("path", { d, class: "sag-halo" }), s("path", { d }),
        s("path", { d: "M0 0 L-0.065 -0.034 L-0.065 0.034 Z", class: "sag-head-of-arrow", transform: `translate(${tip[0]} ${tip[1]}) rotate(${angle})` }));
    };
    // Back to front: edges, the anchor's own, images, the walk, and last the images that it visits, numbered.
    const own = edge => edge.from === anchor || edge.to === anchor;
    picture.replaceChildren(
      ...answer.edges.filter(edge => !own(edge)).map(line), ...answer.edges.filter(own).map(line),
      ...answer.nodes.filter(one => !numbers.has(one.row)).map(node),
      ...path.slice(1).map((one, i) => hop(path[i], one, one.restart)).filter(Boolean),
      ...answer.nodes.filter(one => numbers.has(one.row)).map(node));
    ready();
    if (focused) picture.querySelector(`[data-row="${focused}"]`)?.focus();
    const ring = number => answer.nodes.filter(one => one.ring === number).length;
    note.textContent = ring(1) ? `${count(ring(1), "neighbour")}, and ${ring(2)} two steps away` : "no edge: the anchor is alone in this graph";
    facts.textContent = `The whole graph: ${wordsOf(answer.graph)}`;
    legend.replaceChildren(legendFor(mode, begin));
  }
  return { element, paint };
}

function wordsOf({ edges, effective, isolated, components, stays }) {
  const stay = stays ? `; a step stays in its ${stays.kind} with probability ${stays.share.toFixed(3)} (chance ${stays.chance.toFixed(3)})` : "";
  return `${count(edges, "edge")}, ${effective.toFixed(1)} effective neighbours, ${count(isolated, "isolated image")}, ${count(components, "component")}${stay}.`;
}

function legendFor(mode, begin) {
  if (mode === "mutual") return legendOf([["mutual", "both list each other"], ["single", "one lists the other"], ["walk", "walk"]]);
  if (mode === "similarity") return legendOf([["similar", "similarity from 0 to 1"], ["walk", "walk"]]);
  return legendOf([["class", "same class"], ...(begin.groups ? [["superclass", "same superclass"]] : []), ["neither", "another class"], ["walk", "walk"]]);
}

// Walk ----------------------------------------------------------------------------------------------------------------

function walkPart({ pictureButton, nameOf, last, className, change, step: stepped }) {
  const list = h("ol", { className: "sag-list sag-strip" }), ready = rove(list);
  const live = h("span", { className: "sag-live", ariaLive: "polite" });
  const note = h("p", { className: "sag-note" });
  const button = (sign, ariaLabel, onclick) => h("button", { type: "button", ariaLabel, title: ariaLabel, onclick }, sign);
  const playButton = button("▶ play", "play the walk", () => (timer ? stop() : play()));
  const speed = h("select", { ariaLabel: "speed", onchange: () => { if (timer) { stop(); play(); } } },
    [0.5, 1, 2, 4].map(times => h("option", { value: times, selected: times === 1 }, `${times} ×`)));
  const loop = h("input", { type: "checkbox" });
  const other = [button("‹", "previous walk of this anchor", () => turn(-1)), button("›", "next walk of this anchor", () => turn(1))];
  const element = h("section", { className: "sag-part sag-walk", ariaLabel: "walk" },
    h("div", { className: "sag-bar-of-tools" }, h("h3", null, "Walk"), note, ...other, h("span", { className: "sag-spacer" }),
      button("|◂", "to the start", () => { stop(); to(0); }), button("◂", "one step back", () => { stop(); to(at - 1); }), playButton,
      button("▸", "one step on", () => { stop(); to(at + 1); }), h("label", null, "speed ", speed), h("label", null, loop, " loop")),
    list, live);
  let answer = null, at = 0, timer = null;

  const end = () => answer.walk.steps.length - 1;
  function to(step, quiet = false) {
    at = Math.max(0, Math.min(end(), step));
    if (element.dataset.step !== String(at)) element.dataset.step = at;
    [...list.children].forEach((item, i) => {
      item.classList.toggle("sag-now", i === at && (timer !== null || at < end()));
      item.classList.toggle("sag-later", i > at);
      if (i === at) item.setAttribute("aria-current", "step"); else item.removeAttribute("aria-current");
    });
    if (!quiet) live.textContent = at === 0 ? `start: ${nameOf(answer.walk.steps[0].row)}` : `step ${at} of ${end()}: ${nameOf(answer.walk.steps[at].row)}`;
    stepped(at);
  }
  function play() {
    playButton.textContent = "❚❚ pause";
    playButton.ariaLabel = "pause";
    timer = setInterval(() => {
      if (at < end()) to(at + 1);
      else if (loop.checked) to(0);
      else stop();
    }, 900 / Number(speed.value));
    if (at === end()) to(0);
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    playButton.textContent = "▶ play";
    playButton.ariaLabel = "play the walk";
    if (answer) to(at, true);
  }
  function turn(by) {
    const { walk, walks } = answer.setting;
    change({ walk: (walk + by + walks) % walks });
  }

  return {
    element,
    stop,
    show(found) {
      answer = found;
      const { walk, walks } = answer.setting;
      note.textContent = `${walk + 1} of the anchor's ${walks}`;
      other.forEach(one => { one.disabled = walks === 1; });
      list.replaceChildren(...answer.walk.steps.map((one, i) => h("li", { className: `sag-${one.same}` },
        h("span", { className: "sag-number" }, i === 0 ? "start" : `${i}`),
        pictureButton(one.row, { label: `${i === 0 ? "start" : `step ${i}`}, ${nameOf(one.row)}: make it the anchor` }),
        h("span", { className: "sag-name" }, last(className(one.row) || nameOf(one.row))),
        h("span", null, i === 0 ? "" : one.restart ? "jump home" : `p ${one.probability.toFixed(2)} · sim ${one.similarity.toFixed(2)}`))));
      ready();
      to(timer ? 0 : end(), true);
    },
  };
}

// Saving --------------------------------------------------------------------------------------------------------------

function saveMenu(root, code) {
  const text = h("textarea", { readOnly: true, rows: 4, ariaLabel: "this setting as code" });
  const done = h("span", { role: "status" });
  const dialog = h("dialog", { className: "sag-dialog" }, h("h3", null, "This setting as code"), text,
    h("p", null, h("button", { type: "button", onclick: () => { text.select(); navigator.clipboard?.writeText(text.value); done.textContent = "copied"; } }, "Copy"), " ",
      h("button", { type: "button", onclick: () => dialog.close() }, "Close"), " ", done));
  root.append(dialog);
  const details = h("details", { className: "sag-save" }, h("summary", { role: "button" }, "Save"));
  const entry = (name, act) => h("button", { type: "button", onclick: () => { details.open = false; act(); } }, name);
  const entries = [
    entry("PNG", async () => download(await toPng(root), "sagkit-explore.png")),
    entry("SVG", async () => download(new Blob([await toSvg(root)], { type: "image/svg+xml" }), "sagkit-explore.svg")),
  ];
  if (code() !== undefined || root.querySelector("canvas")) {
    entries.push(entry("Code", () => { done.textContent = ""; text.value = code(); dialog.showModal(); text.select(); }));
  }
  details.append(h("div", null, ...entries));
  details.addEventListener("keydown", event => { if (event.key === "Escape") details.open = false; });
  return details;
}

function download(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function toPng(root, scale = 2) {
  const image = new Image();
  image.src = `data:image/svg+xml;base64,${btoa(unescape(encodeURIComponent(await toSvg(root))))}`;
  await image.decode();
  const canvas = h("canvas", { width: image.width * scale, height: image.height * scale });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise(resolve => canvas.toBlob(resolve, "image/png"));
}

// The board as it stands, as one SVG that needs nothing else: boxes, words, images and drawings at their places.
async function toSvg(root) {
  const outer = root.getBoundingClientRect(), parts = [];
  const put = markup => parts.push(markup);
  const clean = text => text.replace(/[&<>"]/g, sign => `&#${sign.charCodeAt(0)};`);
  const box = rect => `x="${(rect.left - outer.left).toFixed(1)}" y="${(rect.top - outer.top).toFixed(1)}" width="${rect.width.toFixed(1)}" height="${rect.height.toFixed(1)}"`;
  const KEPT = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "opacity", "font-size", "font-weight", "font-family", "text-anchor", "dominant-baseline", "image-rendering"];
  const styled = element => {
    const copy = element.cloneNode(true);
    const [from, to] = [[element, ...element.querySelectorAll("*")], [copy, ...copy.querySelectorAll("*")]];
    from.forEach((one, i) => {
      const style = getComputedStyle(one);
      to[i].setAttribute("style", KEPT.map(name => `${name}:${style.getPropertyValue(name)}`).join(";"));
    });
    return copy;
  };
  const visit = (element, opacity) => {
    const style = getComputedStyle(element), rect = element.getBoundingClientRect();
    if (style.display === "none" || style.visibility === "hidden" || !rect.width || element.matches(".sag-tip, dialog, .sag-save, .sag-live")) return;
    const seen = opacity * Number(style.opacity), faint = seen < 1 ? ` opacity="${seen.toFixed(2)}"` : "";
    const filled = !/rgba?\([^)]*, 0\)|transparent/.test(style.backgroundColor), edged = parseFloat(style.borderTopWidth) > 0 && style.borderTopStyle !== "none";
    if (filled || edged) {
      put(`<rect ${box(rect)} rx="${parseFloat(style.borderTopLeftRadius) || 0}" fill="${filled ? style.backgroundColor : "none"}"`
        + `${edged ? ` stroke="${style.borderTopColor}" stroke-width="${style.borderTopWidth}"` : ""}${faint}/>`);
    }
    if (element.tagName === "svg") {
      const copy = styled(element);
      for (const [name, value] of Object.entries({ x: rect.left - outer.left, y: rect.top - outer.top, width: rect.width, height: rect.height })) copy.setAttribute(name, value);
      put(new XMLSerializer().serializeToString(copy));
      return;
    }
    if (element.tagName === "CANVAS") return put(`<image ${box(rect)} href="${element.toDataURL("image/png")}"${faint}/>`);
    if (element.tagName === "IMG") return element.src && put(`<image ${box(rect)} href="${element.src}" preserveAspectRatio="xMidYMid slice" style="image-rendering:${style.imageRendering}"${faint}/>`);
    const words = (text, place) => put(`<text x="${(place.left - outer.left).toFixed(1)}" y="${(place.top - outer.top + place.height / 2).toFixed(1)}" dominant-baseline="central"`
      + ` font-family="system-ui, sans-serif" font-size="${style.fontSize}" font-weight="${style.fontWeight}" fill="${style.color}"${faint}>${clean(text)}</text>`);
    if (element.tagName === "SELECT") return words(element.selectedOptions[0]?.textContent ?? "", { left: rect.left + 6, top: rect.top, height: rect.height });
    if (element.tagName === "INPUT" && element.type === "number") return words(element.value, { left: rect.left + 6, top: rect.top, height: rect.height });
    if (element.tagName === "INPUT" && element.type === "range") {
      const x = rect.left - outer.left, y = rect.top - outer.top + rect.height / 2, share = parseFloat(style.getPropertyValue("--share")) / 100;
      const { accent, line } = { accent: style.getPropertyValue("--superclass"), line: style.getPropertyValue("--line") };
      put(`<path d="M${x} ${y}h${rect.width}" stroke="${line}" stroke-width="4"${faint}/><circle cx="${x + 8 + share * (rect.width - 16)}" cy="${y}" r="7" fill="${accent}"${faint}/>`);
      return;
    }
    if (element.tagName === "INPUT") return element.checked && words("✓", rect);
    if (element.matches(".sag-bar, .sag-share")) {
      const share = parseFloat(style.getPropertyValue("--share")) / 100, chance = parseFloat(style.getPropertyValue("--chance")) / 100;
      put(`<rect ${box({ left: rect.left, top: rect.top, width: Math.max(0, share * rect.width), height: rect.height })} fill="${style.color}"${faint}/>`);
      if (chance >= 0) put(`<rect ${box({ left: rect.left + chance * rect.width - 1, top: rect.top - 2, width: 2, height: rect.height + 4 })} fill="${style.getPropertyValue("--walk")}"/>`);
      return;
    }
    for (const child of element.childNodes) {
      if (child.nodeType === Node.ELEMENT_NODE) visit(child, seen);
      else if (child.nodeType === Node.TEXT_NODE && child.textContent.trim()) {
        const range = document.createRange();
        lines(child, range).forEach(([text, place]) => words(text, place));
      }
    }
  };
  // A text node's words, line by line as the browser broke them.
  const lines = (node, range) => {
    const found = [];
    for (const word of node.textContent.matchAll(/\S+\s*/g)) {
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].trimEnd().length);
      const place = range.getBoundingClientRect();
      if (found.length && Math.abs(found.at(-1)[1].top - place.top) < 3) found.at(-1)[0] += word[0];
      else found.push([word[0], place]);
    }
    return found;
  };
  visit(root, 1);
  return `<svg xmlns="${SVG}" width="${Math.ceil(outer.width)}" height="${Math.ceil(outer.height)}" viewBox="0 0 ${Math.ceil(outer.width)} ${Math.ceil(outer.height)}">${parts.join("")}</svg>`;
}
