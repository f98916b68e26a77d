"""What the live page does in a browser."""

SCRIPT = """"use strict";
const at = (id) => document.getElementById(id);
const OLD_MS = 2000, AGAIN_MS = 1000, WRONG_KEY = 4401;
let key = location.hash.slice(1) || sessionStorage.getItem("key") || "";
let socket = null, heard = 0, stop = null, pressed = false, over = "";
history.replaceState(null, "", location.pathname);

function tell(words) { at("state").textContent = words; }

function ask(words) {
  key = "";
  sessionStorage.removeItem("key");
  at("ask").hidden = false;
  tell(words);
  at("key").focus();
}

function connect() {
  if (!key) { ask("a key is needed"); return; }
  at("ask").hidden = true;
  tell("connecting");
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const mine = socket = new WebSocket(`${scheme}//${location.host}${location.pathname}`);
  mine.onopen = () => mine.send(JSON.stringify({key}));
  mine.onmessage = (event) => {
    const told = JSON.parse(event.data);
    sessionStorage.setItem("key", key);
    heard = Date.now();
    over = "";
    draw(told.drawing);
    tell(`live, drawing ${told.number}` + (told.dropped ? `, ${told.dropped} dropped` : ""));
    mine.send(JSON.stringify({shown: told.number}));
    watch();
  };
  mine.onclose = (event) => {
    socket = null;
    pressed = false;
    if (event.code === WRONG_KEY) { ask(event.reason); return; }
    over = event.reason || "the connection is lost";
    watch();
    setTimeout(connect, AGAIN_MS);
  };
}

function draw(drawing) {
  at("shown").hidden = false;
  at("title").textContent = drawing.title;
  document.title = drawing.title;
  const facts = drawing.figures.flatMap(([name, words, bad]) => {
    const pair = [document.createElement("dt"), document.createElement("dd")];
    pair[0].textContent = name;
    pair[1].textContent = words;
    pair[1].className = bad ? "bad" : "";
    return pair;
  });
  at("figures").replaceChildren(...facts);
  show(drawing.pictures);
  const parsed = new DOMParser().parseFromString(drawing.plot || "<p/>", "image/svg+xml");
  const box = at("plot"), isAtEnd = box.scrollLeft + box.clientWidth > box.scrollWidth - 2;
  box.replaceChildren(document.importNode(parsed.documentElement, true));
  if (isAtEnd) { box.scrollLeft = box.scrollWidth; }
  stop = drawing.stop;
  pressed = pressed && !stop;
  at("stopped").hidden = !stop;
  at("why").textContent = stop ? `STOPPED: ${stop.why}` : "";
  at("release").hidden = !stop || !stop.may;
}

function show(pictures) {
  const names = Object.keys(pictures), box = at("pictures");
  box.parentElement.hidden = names.length === 0;
  if (names.join() !== [...box.children].map((figure) => figure.dataset.name).join()) {
    box.replaceChildren(...names.map((name) => {
      const figure = document.createElement("figure");
      figure.dataset.name = name;
      figure.append(document.createElement("img"), document.createElement("figcaption"));
      figure.lastChild.textContent = figure.firstChild.alt = name;
      return figure;
    }));
  }
  names.forEach((name, i) => { box.children[i].firstChild.src = pictures[name]; });
}

function watch() {
  const isOpen = socket !== null && socket.readyState === WebSocket.OPEN;
  const silent = heard && Date.now() - heard;
  const isOld = heard && (!isOpen || silent > OLD_MS);
  document.body.className = isOld ? "old" : "";
  at("lost").hidden = !isOld;
  at("silent").textContent = (over || "the server says nothing") +
    `: this is ${Math.round(silent / 1000)} s old.` +
    (stop ? "" : " Stop the robot at the robot.");
  at("stop").disabled = !isOpen || !heard || Boolean(stop);
  at("stop").textContent = stop ? "STOPPED" : pressed ? "STOPPING" : "STOP";
}

at("stop").onclick = () => {
  if (socket) { socket.send(JSON.stringify({stop: true})); pressed = true; watch(); }
};
at("release").onclick = () => {
  if (socket && stop) { socket.send(JSON.stringify({release: stop.number})); }
};
at("ask").onsubmit = (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  at("key").value = "";
  connect();
};
setInterval(watch, 250);
connect();
"""
