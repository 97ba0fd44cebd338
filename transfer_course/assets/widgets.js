// The freeze explorer. Python decides and words everything (widgets.py); this file draws `view` and asks for changes.
// Names come from data: they are only ever set as text. Rows are made once; afterwards the changed ones are patched.

const SVG = 'http://www.w3.org/2000/svg';

function make(tag, name, text, more = {}) {
  const e = document.createElement(tag);
  if (name) e.className = name;
  if (text !== undefined) e.textContent = text;
  for (const [k, v] of Object.entries(more)) e.setAttribute(k, v);
  return e;
}

function setText(e, text) { if (e.textContent !== text) e.textContent = text; }
function setAttr(e, name, value) { if (e.getAttribute(name) !== value) e.setAttribute(name, value); }

function markOf(mark) {
  const svg = document.createElementNS(SVG, 'svg'), path = document.createElementNS(SVG, 'path');
  svg.setAttribute('viewBox', '0 0 16 16');
  svg.setAttribute('aria-hidden', 'true');
  svg.setAttribute('class', mark.filled ? 'tc-mark tc-filled' : 'tc-mark');
  path.setAttribute('d', mark.path);
  svg.append(path);
  return svg;
}

// One row of the tower: its parts are kept, so that a change touches only what differs.
class Row {
  constructor(row, marks) {
    this.marks = marks;
    this.e = make('div', '', undefined, { role: 'treeitem', tabindex: '-1', 'aria-level': row.level, 'aria-posinset': row.pos, 'aria-setsize': row.of });
    this.e.dataset.id = row.id;
    this.e.style.setProperty('--tc-level', row.level - 1);
    this.chevron = make('span', 'tc-chevron', row.leaf ? '' : '›', { 'aria-hidden': 'true' });
    this.chip = make('span', 'tc-chip');
    this.word = make('span');
    const name = make('span', 'tc-name'), bar = make('span', 'tc-bar');
    this.name = make('b'); this.kind = make('small');
    name.append(this.name, this.kind);
    this.whole = make('i', 'tc-whole'); this.trained = make('i', 'tc-trained');
    this.whole.append(this.trained); bar.append(this.whole);
    this.size = make('span', 'tc-size'); this.chips = make('span', 'tc-notes');
    this.rate = make('span', 'tc-rate'); this.gradient = make('span', 'tc-gradient');
    this.grad = make('span'); this.length = make('i');
    this.gradient.append(this.grad, this.length);
    const first = make('span', 'tc-first');
    first.append(this.chevron, this.chip);
    this.e.append(first, name, bar, this.size, this.chips, this.rate, this.gradient);
  }

  patch(row) {
    const now = JSON.stringify(row);
    if (now === this.was) return false;
    this.was = now; this.row = row;
    if (this.state !== row.state) {
      this.e.classList.replace(`tc-${this.state}`, `tc-${row.state}`) || this.e.classList.add('tc-row', `tc-${row.state}`);
      this.chip.replaceChildren(markOf(this.marks[row.state]), this.word);
      this.state = row.state;
    }
    setText(this.word, row.word); setText(this.name, row.name); setText(this.kind, row.shown);
    setText(this.size, row.size); setText(this.rate, row.rate); setText(this.grad, row.gradient);
    setText(this.chips, row.chips.join(' · '));
    this.whole.hidden = !row.size;
    this.whole.style.width = `max(3px, ${row.width * 100}%)`;
    this.trained.style.width = `${row.trained * 100}%`;
    this.length.style.width = `${row.gwidth * 100}%`;
    setAttr(this.gradient, 'data-kind', row.gkind);
    setAttr(this.e, 'aria-label', row.label);
    if (row.can) setAttr(this.e, 'aria-checked', row.checked);
    return true;
  }
}

class Explorer {
  constructor(model, root) {
    this.model = model; this.rows = new Map(); this.at = null; this.serial = 0;
    this.e = make('section', 'tc', undefined, { 'aria-label': 'Freeze explorer' });
    this.title = make('div', 'tc-title'); this.where = make('div', 'tc-where');
    this.meter = make('div', 'tc-meter', undefined, { 'aria-hidden': 'true' });
    this.meter.append(make('i'));
    this.undo = this.button('Undo', { do: 'undo' });
    const head = make('header'), names = make('div');
    names.append(this.title, this.where); head.append(names, this.undo);

    this.plans = make('div', 'tc-plans', undefined, { role: 'group', 'aria-label': 'Plans' });
    const id = `tc-${Math.random().toString(36).slice(2)}`, cut = make('div', 'tc-cut'), label = make('label', '', 'Train the last', { for: id });
    this.slider = make('input', '', undefined, { type: 'range', min: 1, step: 1, id });
    this.k = make('output', '', '', { for: id });
    this.slider.addEventListener('input', () => this.ask({ do: 'cut', k: Number(this.slider.value) }));
    cut.append(label, this.slider, this.k);
    this.statistics = make('div', 'tc-statistics', undefined, { role: 'group', 'aria-label': 'BatchNorm statistics of what trains' });
    const bar = make('div', 'tc-controls');
    bar.append(cut, this.statistics);

    this.tree = make('div', 'tc-tree', undefined, { role: 'tree', 'aria-label': 'Stages, the head on top' });
    this.tree.addEventListener('keydown', e => this.key(e));
    this.tree.addEventListener('click', e => this.click(e));
    this.tree.addEventListener('focusin', e => this.focus(e.target.closest('[role=treeitem]')));
    const tower = make('div', 'tc-tower'), heads = make('div', 'tc-row tc-heads', undefined, { 'aria-hidden': 'true' });
    for (const [name, text] of [['tc-first', 'state'], ['tc-name', 'stage'], ['tc-bar', 'parameters'], ['tc-size', ''], ['tc-notes', 'in training'],
      ['tc-rate', 'rate'], ['tc-gradient', 'gradient']]) heads.append(make('span', name, text));
    this.out = make('div', 'tc-flow'); this.in = make('div', 'tc-flow');
    tower.append(this.out, heads, this.tree, this.in);

    const side = make('div', 'tc-side');
    this.cards = ['Trains', 'An epoch', 'Memory'].map(t => {
      const card = make('div', 'tc-card'), value = make('div', 'tc-value'), notes = [make('div', 'tc-note'), make('div', 'tc-note')];
      card.append(make('div', 'tc-label', t), value, ...notes); side.append(card);
      return { card, value, notes };
    });
    this.cards[0].card.append(this.meter);
    this.measure = this.button('Measure one step', { do: 'measure' });
    this.gradients = this.button('Gradients of one batch', { do: 'gradients' });
    const acts = make('div', 'tc-acts');
    acts.append(this.measure, this.gradients); side.append(acts);
    this.detail = make('div', 'tc-detail', undefined, { role: 'region', 'aria-label': 'The part in focus' });
    side.append(this.detail);

    this.wrong = make('details', 'tc-wrong'); this.count = make('summary'); this.list = make('ul');
    this.wrong.append(this.count, this.list);
    const code = make('details', 'tc-code');
    this.code = make('pre', '', '', { tabindex: '0', 'aria-label': 'Code that does the same' });
    code.append(make('summary', '', 'Show me the code'), this.code);
    this.said = make('div', 'tc-said', '', { 'aria-live': 'polite', role: 'status' });
    this.still = make('div', 'tc-still', 'No kernel answers, so this is only a picture: run the cell to make it live.');
    this.still.hidden = true;
    const body = make('div', 'tc-body'), shell = make('div', 'tc-shell');
    body.append(tower, side);
    shell.append(head, this.plans, bar, body, this.wrong, code, this.said, this.still);
    this.e.append(shell); root.append(this.e);

    this.onview = () => this.draw();
    this.onopen = () => this.unfold();
    this.onmessage = m => { if (m && m.alive) { this.e.classList.add('tc-live'); this.still.hidden = true; } };
    model.on('change:view', this.onview); model.on('change:opened', this.onopen); model.on('msg:custom', this.onmessage);
    this.draw(true);
    this.ask({ do: 'hello' });
    this.timer = setTimeout(() => { this.still.hidden = this.e.classList.contains('tc-live'); }, 2500);
  }

  ask(content) {
    if (['measure', 'gradients'].includes(content.do)) setAttr(this.e, 'aria-busy', 'true');
    this.model.send(content);
  }

  button(text, content) {
    const b = make('button', '', text, { type: 'button' });
    b.addEventListener('click', () => this.ask(content));
    return b;
  }

  draw(first) {
    const v = this.model.get('view') || {};
    if (!v.rows) return;
    if (v.rows.length !== this.rows.size || v.rows.some(r => !this.rows.has(r.id))) {
      this.above = null;
      this.rows = new Map(v.rows.map(r => [r.id, new Row(r, v.marks)]));
      this.tree.replaceChildren(...[...this.rows.values()].map(r => r.e));
    }
    for (const r of v.rows) this.rows.get(r.id).patch(r);
    if (v.cut !== this.above) {
      this.rows.get(this.above)?.e.classList.remove('tc-above');
      this.rows.get(v.cut)?.e.classList.add('tc-above');
      this.above = v.cut;
    }
    setText(this.title, v.name); setText(this.where, v.totals.where);
    setText(this.out, v.out); setText(this.in, v.in);
    this.undo.disabled = !v.undo;
    this.slider.max = v.totals.n; this.slider.value = v.totals.k;
    setText(this.k, v.totals.stages); setAttr(this.slider, 'aria-valuetext', v.totals.stages);
    this.groups(v);
    const t = v.totals;
    [[t.trains, t.note], [t.seconds, t.cached, t.basis], [t.memory, t.memorynote]].forEach(([value, ...notes], i) => {
      setText(this.cards[i].value, value);
      this.cards[i].notes.forEach((e, j) => setText(e, notes[j] || ''));
    });
    this.meter.firstChild.style.width = `${t.share * 100}%`;
    this.measure.hidden = this.gradients.hidden = !v.task;
    this.wrong.hidden = !v.problems.length;
    setText(this.count, v.wrong);
    const told = JSON.stringify(v.problems);
    if (told !== this.told) {
      if (!this.told || this.told === '[]') this.wrong.open = v.explain;
      this.told = told;
      this.list.replaceChildren(...v.problems.map(p => make('li', '', p)));
    }
    setText(this.code, v.code);
    setAttr(this.e, 'aria-busy', 'false');
    if (v.serial !== this.serial) { this.serial = v.serial; this.said.textContent = v.said; }
    this.unfold();
    if (first || !this.rows.has(this.at)) this.at = v.rows.length ? v.rows[0].id : null;
    this.rove(); this.tell();
  }

  groups(v) {
    const told = JSON.stringify([v.plans, v.statistics, v.norms]);
    if (told === this.grouped) return;
    const held = document.activeElement && this.e.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.grouped = told;
    const choice = (text, label, on, content, key) => {
      const b = this.button(text, content);
      if (label) b.setAttribute('aria-label', label);
      b.setAttribute('aria-pressed', on); b.dataset.key = key;
      return b;
    };
    this.plans.replaceChildren(make('span', 'tc-lead', 'Plans'), ...v.plans.map((p, i) => {
      if (p.phases.length === 1) return choice(p.shown, '', p.phases[0].on, { do: 'preset', name: p.name, phase: 1 }, `p${i}.1`);
      const group = make('span', 'tc-phases', undefined, { role: 'group', 'aria-label': p.shown });
      group.append(make('span', '', p.shown), ...p.phases.map((f, j) => choice(`${j + 1}`, f.label, f.on, { do: 'preset', name: p.name, phase: j + 1 }, `p${i}.${j + 1}`)));
      return group;
    }));
    this.statistics.hidden = !v.norms;
    this.statistics.replaceChildren(make('span', '', 'BatchNorm statistics'), ...['adapt', 'keep'].map(
      w => choice(w, '', v.statistics === w, { do: 'statistics', to: w }, `s${w}`)));
    if (held) this.e.querySelector(`[data-key="${held}"]`)?.focus();
  }

  opened() { return new Set(this.model.get('opened') || []); }

  unfold() {
    const open = this.opened(), seen = new Set(['']);
    for (const [id, { e, row }] of this.rows) {
      const shown = seen.has(row.parent);
      if (e.hidden === shown) e.hidden = !shown;
      if (row.leaf) continue;
      setAttr(e, 'aria-expanded', open.has(id) ? 'true' : 'false');
      if (shown && open.has(id)) seen.add(id);
    }
  }

  fold(id, open) {
    const now = this.opened();
    if (open) now.add(id); else now.delete(id);
    this.model.set('opened', [...now]); this.model.save_changes();
    this.unfold();
  }

  shown() { return [...this.rows.values()].filter(r => !r.e.hidden); }

  rove() { for (const [id, r] of this.rows) setAttr(r.e, 'tabindex', id === this.at ? '0' : '-1'); }

  focus(e) {
    if (!e || e.dataset.id === this.at) return;
    this.at = e.dataset.id; this.rove(); this.tell();
  }

  move(id) { this.rows.get(id)?.e.focus(); }

  tell() {
    const row = this.rows.get(this.at)?.row, v = this.model.get('view');
    if (!row) return;
    const told = JSON.stringify(row);
    if (told === this.detailed) return;
    this.detailed = told;
    const list = make('dl');
    for (const [key, label] of v.facts) if (row[key]) list.append(make('dt', '', label), make('dd', '', row[key]));
    this.detail.replaceChildren(make('div', 'tc-label', row.path), list);
  }

  toggle(id) { if (this.rows.get(id)?.row.can) this.ask({ do: 'toggle', id }); }

  click(e) {
    const item = e.target.closest('[role=treeitem]');
    if (!item) return;
    item.focus();
    if (e.target.closest('.tc-chevron') && item.hasAttribute('aria-expanded')) this.fold(item.dataset.id, item.getAttribute('aria-expanded') === 'false');
    else this.toggle(item.dataset.id);
  }

  key(e) {
    const item = e.target.closest('[role=treeitem]');
    if (!item || e.ctrlKey || e.metaKey || e.altKey) return;
    const id = item.dataset.id, shown = this.shown(), i = shown.findIndex(r => r.row.id === id), { row } = this.rows.get(id), open = this.opened().has(id);
    const go = j => shown[j] && this.move(shown[j].row.id);
    const acts = {
      ArrowDown: () => go(i + 1), ArrowUp: () => go(i - 1), Home: () => go(0), End: () => go(shown.length - 1),
      ArrowRight: () => row.leaf || (open ? go(i + 1) : this.fold(id, true)),
      ArrowLeft: () => (open && !row.leaf ? this.fold(id, false) : row.parent && this.move(row.parent)),
      ' ': () => this.toggle(id), Enter: () => this.toggle(id),
    };
    if (!acts[e.key]) return;
    e.preventDefault(); e.stopPropagation();   // the notebook has keys of its own
    acts[e.key]();
  }

  close() {
    clearTimeout(this.timer);
    this.model.off('change:view', this.onview); this.model.off('change:opened', this.onopen); this.model.off('msg:custom', this.onmessage);
  }
}

export default {
  render({ model, el }) {
    const explorer = new Explorer(model, el);
    return () => explorer.close();
  },
};
