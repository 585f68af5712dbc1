// The body of an event handler: `this` is the player.
const root = this;

// Undo the differences: the text and the changed positions of every frame.
const decode = ({ first, steps }) => {
  let text = [...first];
  return steps.map(([sigma, gaps, marks]) => {
    const changed = new Set();
    let position = 0;
    text = [...text];
    [...marks].forEach((mark, i) => {
      position += gaps[i];
      changed.add(position);
      text[position] = mark;
    });
    return { sigma, text, changed };
  });
};

// A cell for each character. Lines break where the cleanest frame has its spaces, in every frame, so
// that noise full of accidental spaces cannot make lines jump. Text enters through textContent, never
// as HTML.
const make = (tag, parent) => parent.appendChild(document.createElement(tag));
const layOut = (pre, marks, pad) => {
  let word = null;
  pre.textContent = "";
  return marks.map((mark) => {
    word ||= make("span", pre);
    const cell = make("span", word);
    if (mark === "\n") make("br", pre);
    if (" \t\n".includes(mark) || mark === pad) word = null;
    return cell;
  });
};
// The first padding before more text is where a text ends: a pilcrow to see, and END to copy. A sign that
// joins the letter before it (an accent, a vowel of Hindi) is drawn in that letter's cell.
const END = "<|endoftext|>\n", JOINS = /[\p{M}\u200c\u200d]/u, NARROW = /[\0-\u058f\u1e00-\u22ff\ufffd]/;
const draw = (cells, { text, changed }, pad) => {
  const end = text.reduce((end, mark, i) => (mark === pad ? end : i), -1);
  let letter = null;
  cells.forEach((cell, i) => {
    const mark = text[i], joins = letter && JOINS.test(mark);
    const padding = i > end ? "end" : text[i - 1] === pad ? "pad" : "stop";
    const kind = { "\n": "newline", "\t": "tab", [pad]: padding }[mark];
    const name = kind || (joins ? "joined" : NARROW.test(mark) ? "" : "wide");
    cell.className = name && `ddlm-${name}`;
    cell.textContent = joins || mark === pad ? "" : mark;
    if (name === "stop") cell.textContent = i ? `\n${END}` : END;
    if (joins) letter.textContent += mark;
    else letter = kind || mark === " " ? null : cell;
    if (changed.has(i)) (joins ? letter : cell).classList.add("ddlm-changed");
  });
};

// Play and pause. It starts by itself once, when it first comes into view, unless the reader asked the
// system for less motion or has touched a control.
const connect = (root, button, range, last, show) => {
  let timer, touched = false;
  const pause = () => {
    timer = clearInterval(timer);
    button.textContent = "Play";
  };
  const play = () => {
    if (+range.value === last) show(0);
    button.textContent = "Pause";
    timer = setInterval(() => {
      if (+range.value < last) show(+range.value + 1);
      if (+range.value === last || !root.isConnected) pause();
    }, 1000 / root.dataset.fps);
  };
  button.onclick = () => { touched = true; timer ? pause() : play(); };
  range.oninput = () => { touched = true; pause(); show(+range.value); };
  pause();
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    seen.disconnect();
    if (!touched) play();
  }, { threshold: 0.5 });
  seen.observe(root);
};

// Set up the player, once. What is left from a page that was saved while it ran goes away, with the hint.
// The controls are native: arrow keys scrub, the space bar presses the button, a screen reader hears the
// caption as the value of the slider.
root.onpointerover = root.oncontentvisibilityautostatechange = null;
root.querySelectorAll(":scope > :not(pre, .ddlm-title)").forEach((part) => part.remove());
make("style", root).textContent = root.dataset.style;
const { id } = root;
for (let n = 2, other; (other = document.getElementById(root.id)) && other !== root; n++)
  root.id = `${id}-${n}`;
const data = JSON.parse(root.dataset.steps);
const frames = decode(data), last = frames.length - 1;
const cells = layOut(root.querySelector("pre"), frames[data.cleanest].text, data.pad);
const bar = make("div", root), button = make("button", bar), range = make("input", bar);
const caption = make("output", root);
bar.className = "ddlm-bar";
button.type = "button";
Object.assign(range, { type: "range", min: 0, max: last });
range.setAttribute("aria-label", "Step");
caption.setAttribute("aria-live", "off");
const show = (k) => {
  const { sigma, changed: { size } } = frames[k];
  draw(cells, frames[k], data.pad);
  caption.textContent = `step ${k} of ${last} · noise σ̄ = ${sigma} · `
    + `${size} character${size === 1 ? "" : "s"} changed`;
  range.value = k;
  range.setAttribute("aria-valuetext", caption.textContent);
};
show(last);
connect(root, button, range, last, show);
