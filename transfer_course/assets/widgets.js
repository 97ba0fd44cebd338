// The widgets of the course: freeze explorer, thaw timeline, drift and budget view. Python decides and words everything; this file
// draws `view`, whose `kind` says what it is, and asks for changes. Names come from data: texts become text nodes, never markup.
const SVG = 'http://www.w3.org/2000/svg'
let count = 0

function h(tag, attrs = {}, ...kids) {
  const e = ['svg', 'path', 'polygon', 'polyline'].includes(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag)
  for (const [k, v] of Object.entries(attrs)) if (v != null && v !== false) e.setAttribute(k, v === true ? '' : v)
  e.append(...kids.flat(9).filter(k => k != null && k !== false))
  return e
}

const setText = (e, text) => { if (e.textContent !== text) e.textContent = text }
const setAttr = (e, name, value) => { if (e.getAttribute(name) !== value) e.setAttribute(name, value) }
const glyph = (mark, style) => h('svg', { viewBox: '0 0 16 16', class: mark.filled ? 'tc-mark tc-filled' : 'tc-mark', 'aria-hidden': 'true', style },
  h('path', { d: mark.path, 'fill-rule': 'evenodd' }))

// ---- freeze explorer: rows are made once; afterwards the changed ones are patched

// One row of the tower: its parts are kept, so that a change touches only what differs.
class Row {
  constructor(row, marks) {
    const part = (name, ...kids) => h('span', { class: name }, ...kids)
    this.marks = marks
    this.chip = part('tc-chip'); this.word = h('span'); this.name = h('b'); this.kind = h('small')
    this.trained = h('i', { class: 'tc-trained' }); this.whole = h('i', { class: 'tc-whole' }, this.trained)
    this.size = part('tc-size'); this.chips = part('tc-notes'); this.rate = part('tc-rate')
    this.grad = h('span'); this.length = h('i'); this.gradient = part('tc-gradient', this.grad, this.length)
    this.e = h('div', { role: 'treeitem', tabindex: -1, 'aria-level': row.level, 'aria-posinset': row.pos, 'aria-setsize': row.of, 'data-id': row.id,
      style: `--tc-level:${row.level - 1}` },
    part('tc-first', h('span', { class: 'tc-chevron', 'aria-hidden': 'true' }, row.leaf ? '' : '›'), this.chip),
    part('tc-name', this.name, this.kind), part('tc-bar', this.whole), this.size, this.chips, this.rate, this.gradient)
  }

  patch(row) {
    const now = JSON.stringify(row)
    if (now === this.was) return
    this.was = now; this.row = row
    if (this.state !== row.state) {
      this.e.classList.replace(`tc-${this.state}`, `tc-${row.state}`) || this.e.classList.add('tc-row', `tc-${row.state}`)
      this.chip.replaceChildren(glyph(this.marks[row.state]), this.word)
      this.state = row.state
    }
    setText(this.word, row.word); setText(this.name, row.name); setText(this.kind, row.shown)
    setText(this.size, row.size); setText(this.rate, row.rate); setText(this.grad, row.gradient)
    setText(this.chips, row.chips.join(' · '))
    this.whole.hidden = !row.size
    this.whole.style.width = `max(3px, ${row.width * 100}%)`
    this.trained.style.width = `${row.trained * 100}%`
    this.length.style.width = `${row.gwidth * 100}%`
    setAttr(this.gradient, 'data-kind', row.gkind)
    setAttr(this.e, 'aria-label', row.label)
    if (row.can) setAttr(this.e, 'aria-checked', row.checked)
  }
}

class Explorer {
  constructor(model, root) {
    this.model = model; this.rows = new Map(); this.at = null; this.serial = 0
    const id = `tc${++count}`, part = (name, ...kids) => h('div', { class: name }, ...kids)
    const group = (name, label) => h('div', { class: name, role: 'group', 'aria-label': label })
    this.title = part('tc-title'); this.where = part('tc-where'); this.undo = this.button('Undo', { do: 'undo' })
    this.plans = group('tc-plans', 'Plans'); this.statistics = group('tc-statistics', 'BatchNorm statistics of what trains')
    this.slider = h('input', { type: 'range', min: 1, step: 1, id }); this.k = h('output', { for: id })
    this.slider.addEventListener('input', () => this.ask({ do: 'cut', k: Number(this.slider.value) }))

    this.tree = h('div', { class: 'tc-tree', role: 'tree', 'aria-label': 'Stages, the head on top' })
    this.tree.addEventListener('keydown', e => this.key(e))
    this.tree.addEventListener('click', e => this.click(e))
    this.tree.addEventListener('focusin', e => this.focus(e.target.closest('[role=treeitem]')))
    const heads = [['tc-first', 'state'], ['tc-name', 'stage'], ['tc-bar', 'parameters'], ['tc-size', ''], ['tc-notes', 'in training'], ['tc-rate', 'rate'],
      ['tc-gradient', 'gradient']].map(([name, text]) => h('span', { class: name }, text))
    this.out = part('tc-flow'); this.in = part('tc-flow')

    this.cards = ['Trains', 'An epoch', 'Memory'].map(t => {
      const value = part('tc-value'), notes = [part('tc-note'), part('tc-note')]
      return { card: part('tc-card', part('tc-label', t), value, notes), value, notes }
    })
    this.meter = h('i')
    this.cards[0].card.append(h('div', { class: 'tc-meter', 'aria-hidden': 'true' }, this.meter))
    this.measure = this.button('Measure one step', { do: 'measure' })
    this.gradients = this.button('Gradients of one batch', { do: 'gradients' })
    this.detail = h('div', { class: 'tc-detail', role: 'region', 'aria-label': 'The part in focus' })

    this.count = h('summary'); this.list = h('ul')
    this.wrong = h('details', { class: 'tc-wrong' }, this.count, this.list)
    this.code = h('pre', { tabindex: 0, 'aria-label': 'Code that does the same' })
    this.said = h('div', { class: 'tc-said', 'aria-live': 'polite', role: 'status' })
    this.still = h('div', { class: 'tc-still', hidden: true }, 'No answer yet: the kernel is busy, or gone. If it is gone, this is only a picture: run the cell to make it live.')
    this.e = h('section', { class: 'tc', ...own, 'aria-label': 'Freeze explorer' }, part('tc-shell',
      h('header', {}, h('div', {}, this.title, this.where), this.undo), this.plans,
      part('tc-controls', part('tc-cut', h('label', { for: id }, 'Train the last'), this.slider, this.k), this.statistics),
      part('tc-body', part('tc-tower', this.out, h('div', { class: 'tc-row tc-heads', 'aria-hidden': 'true' }, heads), this.tree, this.in),
        part('tc-side', this.cards.map(c => c.card), part('tc-acts', this.measure, this.gradients), this.detail)),
      this.wrong, h('details', { class: 'tc-code' }, h('summary', {}, 'Show me the code'), this.code), this.said, this.still))
    root.append(this.e)

    this.onview = () => this.draw()
    this.onopen = () => this.unfold()
    this.onmessage = m => { if (m && m.alive) { this.e.classList.add('tc-live'); this.still.hidden = true } }
    model.on('change:view', this.onview); model.on('change:opened', this.onopen); model.on('msg:custom', this.onmessage)
    this.draw(true)
    this.ask({ do: 'hello' })
    this.timer = setTimeout(() => { this.still.hidden = this.e.classList.contains('tc-live') }, 2500)
  }

  ask(content) {
    if (['measure', 'gradients'].includes(content.do)) setAttr(this.e, 'aria-busy', 'true')
    this.model.send(content)
  }

  button(text, content, attrs) {
    const b = h('button', { type: 'button', ...attrs }, text)
    b.addEventListener('click', () => this.ask(content))
    return b
  }

  draw(first) {
    const v = this.model.get('view') || {}, t = v.totals
    if (!v.rows) return
    if (v.rows.length !== this.rows.size || v.rows.some(r => !this.rows.has(r.id))) {
      this.above = null
      this.rows = new Map(v.rows.map(r => [r.id, new Row(r, v.marks)]))
      this.tree.replaceChildren(...[...this.rows.values()].map(r => r.e))
    }
    for (const r of v.rows) this.rows.get(r.id).patch(r)
    if (v.cut !== this.above) {
      this.rows.get(this.above)?.e.classList.remove('tc-above')
      this.rows.get(v.cut)?.e.classList.add('tc-above')
      this.above = v.cut
    }
    setText(this.title, v.name); setText(this.where, t.where)
    setText(this.out, v.out); setText(this.in, v.in)
    this.undo.disabled = !v.undo
    this.slider.max = t.n; this.slider.value = t.k
    setText(this.k, t.stages); setAttr(this.slider, 'aria-valuetext', t.stages)
    this.groups(v)
    for (const [i, [value, ...notes]] of [[t.trains, t.note], [t.seconds, t.cached, t.basis], [t.memory, t.memorynote]].entries()) {
      setText(this.cards[i].value, value)
      this.cards[i].notes.forEach((e, j) => setText(e, notes[j] || ''))
    }
    this.meter.style.width = `${t.share * 100}%`
    this.measure.hidden = this.gradients.hidden = !v.task
    this.wrong.hidden = !v.problems.length
    setText(this.count, v.wrong)
    const told = JSON.stringify(v.problems)
    if (told !== this.told) {
      if (!this.told || this.told === '[]') this.wrong.open = v.explain
      this.told = told
      this.list.replaceChildren(...v.problems.map(p => h('li', {}, p)))
    }
    setText(this.code, v.code)
    setAttr(this.e, 'aria-busy', 'false')
    if (v.serial !== this.serial) { this.serial = v.serial; this.said.textContent = v.said }
    this.unfold()
    if (first || !this.rows.has(this.at)) this.at = v.rows.length ? v.rows[0].id : null
    this.rove(); this.tell()
  }

  groups(v) {
    const told = JSON.stringify([v.plans, v.statistics, v.norms])
    if (told === this.grouped) return
    const held = this.e.contains(document.activeElement) ? document.activeElement.dataset.key : null
    this.grouped = told
    const choice = (text, label, on, key, content) => this.button(text, content, { 'aria-label': label || null, 'aria-pressed': `${on}`, 'data-key': key })
    const phase = (p, i, text, label, j) => choice(text, label, p.phases[j].on, `p${i}.${j + 1}`, { do: 'preset', name: p.name, phase: j + 1 })
    this.plans.replaceChildren(h('span', { class: 'tc-lead' }, 'Plans'), ...v.plans.map((p, i) => p.phases.length === 1 ? phase(p, i, p.shown, '', 0)
      : h('span', { class: 'tc-phases', role: 'group', 'aria-label': p.shown }, h('span', {}, p.shown), p.phases.map((f, j) => phase(p, i, j + 1, f.label, j)))))
    this.statistics.hidden = !v.norms
    this.statistics.replaceChildren(h('span', {}, 'BatchNorm statistics'),
      ...['adapt', 'keep'].map(w => choice(w, '', v.statistics === w, `s${w}`, { do: 'statistics', to: w })))
    if (held) this.e.querySelector(`[data-key="${held}"]`)?.focus()
  }

  opened() { return new Set(this.model.get('opened') || []) }

  unfold() {
    const open = this.opened(), seen = new Set([''])
    for (const [id, { e, row }] of this.rows) {
      const shown = seen.has(row.parent)
      if (e.hidden === shown) e.hidden = !shown
      if (row.leaf) continue
      setAttr(e, 'aria-expanded', `${open.has(id)}`)
      if (shown && open.has(id)) seen.add(id)
    }
  }

  fold(id, open) {
    const now = this.opened()
    if (open) now.add(id); else now.delete(id)
    this.model.set('opened', [...now]); this.model.save_changes()
    this.unfold()
  }

  shown() { return [...this.rows.values()].filter(r => !r.e.hidden) }

  rove() { for (const [id, r] of this.rows) setAttr(r.e, 'tabindex', id === this.at ? '0' : '-1') }

  focus(e) {
    if (!e || e.dataset.id === this.at) return
    this.at = e.dataset.id; this.rove(); this.tell()
  }

  move(id) { this.rows.get(id)?.e.focus() }

  tell() {
    const row = this.rows.get(this.at)?.row, told = JSON.stringify(row)
    if (!row || told === this.detailed) return
    this.detailed = told
    const facts = this.model.get('view').facts.filter(([key]) => row[key])
    this.detail.replaceChildren(h('div', { class: 'tc-label' }, row.path), h('dl', {}, facts.map(([key, label]) => [h('dt', {}, label), h('dd', {}, row[key])])))
  }

  toggle(id) { if (this.rows.get(id)?.row.can) this.ask({ do: 'toggle', id }) }

  click(e) {
    const item = e.target.closest('[role=treeitem]')
    if (!item) return
    item.focus()
    if (e.target.closest('.tc-chevron') && item.hasAttribute('aria-expanded')) this.fold(item.dataset.id, item.getAttribute('aria-expanded') === 'false')
    else this.toggle(item.dataset.id)
  }

  key(e) {
    const item = e.target.closest('[role=treeitem]')
    if (!item || e.ctrlKey || e.metaKey || e.altKey) return
    const id = item.dataset.id, shown = this.shown(), i = shown.findIndex(r => r.row.id === id), { row } = this.rows.get(id), open = this.opened().has(id)
    const go = j => shown[j] && this.move(shown[j].row.id)
    const acts = {
      ArrowDown: () => go(i + 1), ArrowUp: () => go(i - 1), Home: () => go(0), End: () => go(shown.length - 1),
      ArrowRight: () => row.leaf || (open ? go(i + 1) : this.fold(id, true)),
      ArrowLeft: () => (open && !row.leaf ? this.fold(id, false) : row.parent && this.move(row.parent)),
      ' ': () => this.toggle(id), Enter: () => this.toggle(id),
    }
    if (!acts[e.key]) return
    e.preventDefault(); e.stopPropagation()   // the notebook has keys of its own
    acts[e.key]()
  }

  close() {
    clearTimeout(this.timer)
    this.model.off('change:view', this.onview); this.model.off('change:opened', this.onopen); this.model.off('msg:custom', this.onmessage)
  }
}

// ---- what timeline, drift and budget view have in common

// Changes the tree `a` into `b` in place, so that focus and live region stay.
function morph(a, b) {
  if (a.nodeName !== b.nodeName) return a.replaceWith(b)
  if (a.nodeType === 3) { if (a.data !== b.data) a.data = b.data; return }
  for (const { name } of [...a.attributes]) if (!b.hasAttribute(name)) a.removeAttribute(name)
  for (const { name, value } of b.attributes) if (a.getAttribute(name) !== value) a.setAttribute(name, value)
  if (a.nodeName === 'INPUT') a.value = b.getAttribute('value')
  const old = [...a.childNodes], now = [...b.childNodes]
  now.forEach((n, i) => old[i] ? morph(old[i], n) : a.append(n))
  old.slice(now.length).forEach(n => n.remove())
}

const row = (...cells) => h('div', { role: 'row', class: 'row' }, ...cells)
const head = (v, id, ...more) => h('header', {}, h('h3', { id }, v.title), ...more)
const status = text => h('p', { role: 'status', 'aria-live': 'polite', class: 'says' }, text)
const own = { 'data-lm-suppress-shortcuts': 'true' }   // JupyterLab leaves the keys of such an element alone
const times = (n, one) => `${n} ${one}${n === 1 ? '' : 's'}`

// ---- thaw timeline

const KEYS = { ArrowUp: 'higher', ArrowDown: 'lower', ArrowRight: 'longer', ArrowLeft: 'shorter', '+': 'faster', '=': 'faster', '-': 'slower',
  Insert: 'insert', i: 'insert', Delete: 'delete', u: 'undo', Backspace: 'undo' }
const BUTTONS = [['higher', 'Freeze one more'], ['lower', 'Thaw one more'], ['shorter', 'Epoch less'], ['longer', 'Epoch more'], ['slower', 'Slower'],
  ['faster', 'Faster'], ['insert', 'Insert phase'], ['delete', 'Delete phase'], ['undo', 'Undo']]

function timeline(v, ui, id) {
  const top = v.stages.length - 1, now = v.now, drag = ui.drag || {}
  const phases = v.phases.map((p, k) => drag.phase === k ? { ...p, ...drag.change } : p)
  const sel = ui.sel = Math.min(ui.sel, phases.length - 1)
  const line = k => now && now.done.length > k ? Math.min(100, 100 * now.done[k] / v.phases[k].epochs) : 0
  const handle = (p, k) => h('div', { role: 'columnheader', class: 'phase' + (k === sel ? ' on' : ''), 'data-p': k },
    h('div', { ...own, role: 'slider', class: 'handle', tabindex: k === sel ? 0 : -1, 'data-p': k, 'aria-label': `Phase ${k + 1}: first stage that trains`,
      'aria-orientation': 'vertical', 'aria-valuemin': 0, 'aria-valuemax': top, 'aria-valuenow': p.start, 'aria-valuetext': v.phases[k].words,
      'aria-describedby': id + 'k' },
    h('b', {}, `Phase ${k + 1}`), h('span', {}, times(p.epochs, 'epoch'), h('i', {}, ` · ${p.first}–${p.first + p.epochs - 1}`))),
    h('span', { class: 'done', style: `width:${line(k)}%` }), h('span', { class: 'edge', 'data-p': k }))
  const cell = (p, k, i) => {
    const c = p.cells[i], train = i >= p.start
    return h('div', { role: 'cell', 'data-p': k, 'data-s': i, class: `cell ${train ? 'train' : 'frozen'}${i === p.start ? ' cut' : ''}${k === sel ? ' on' : ''}`,
      style: `--heat:${Math.round(100 * (c.heat ?? .5))}%;--at:${line(k)}%` },
    glyph(v.glyphs[train ? 'train' : 'frozen']), h('span', { class: 'word' }, train ? 'trains ' : 'frozen'), train && h('span', {}, c.rate),
    now?.running && now.phase === k && h('span', { class: 'now' }))
  }
  const columns = `max-content ${phases.map(p => `minmax(4.4rem,${p.epochs}fr)`).join(' ')}`
  const rate = v.low === v.high ? v.low : `${v.low} to ${v.high}`
  return [
    head(v, id, h('p', { class: 'soft' }, v.sub)),
    h('div', { class: 'scroll' }, h('div', { role: 'table', 'aria-labelledby': id, class: 'grid', style: `grid-template-columns:${columns}` },
      row(h('div', { role: 'columnheader', class: 'name soft' }, 'stage'), ...phases.map(handle)),
      ...v.stages.map((_, j) => top - j).map(i => row(h('div', { role: 'rowheader', class: 'name' }, v.stages[i]), ...phases.map((p, k) => cell(p, k, i)))))),
    h('p', { class: 'legend' }, h('span', {}, h('i', { class: 'chip frozen' }), glyph(v.glyphs.frozen), ' frozen'),
      h('span', {}, h('i', { class: 'chip heat' }), glyph(v.glyphs.train), ` trains, peak rate ${rate}`)),
    status(drag.words || v.says || v.phases[sel].words),
    h('div', { class: 'tools' }, BUTTONS.map(([act, text]) =>
      h('button', { type: 'button', tabindex: -1, 'data-do': act, disabled: act === 'undo' && !v.undo }, text))),
    h('p', { class: 'soft keys', id: id + 'k' }, 'Keys: ↑ ↓ freeze or thaw a stage, ← → epochs, + − rate, Page Up and Page Down choose a phase, Insert, '
      + 'Delete, U undoes. Or drag: a cell sets the first stage that trains, a right edge the epochs.')]
}

function steer(root, ask, get, ui, draw) {
  const focus = () => root.querySelector(`.handle[data-p="${ui.sel}"]`)?.focus()
  const choose = k => { ui.sel = Math.max(0, Math.min(get().phases.length - 1, k)); draw(); focus() }
  root.addEventListener('keydown', e => {
    if (ui.drag && e.key === 'Escape') { ui.drag = null; draw(); e.stopPropagation(); return }
    if (!e.target.matches('.handle') || e.altKey) return
    const z = (e.ctrlKey || e.metaKey) && e.key === 'z', act = z ? 'undo' : e.ctrlKey || e.metaKey ? null : KEYS[e.key]
    if (act) ask({ do: act, phase: ui.sel })
    else if (e.key === 'PageUp') choose(ui.sel - 1)
    else if (e.key === 'PageDown') choose(ui.sel + 1)
    else if (e.key === 'Home') ask({ do: 'start', phase: ui.sel, value: 0 })
    else if (e.key === 'End') ask({ do: 'start', phase: ui.sel, value: get().stages.length - 1 })
    else return
    e.preventDefault(); e.stopPropagation()
  })
  root.addEventListener('click', e => {
    const b = e.target.closest('[data-do]')
    if (b) { ask({ do: b.dataset.do, phase: ui.sel }); focus() }
  })
  root.addEventListener('pointerdown', e => {
    const at = e.target.closest('[data-p]')
    if (!at || e.button) return
    const k = +at.dataset.p, wide = at.closest('.phase')?.getBoundingClientRect().width
    choose(k)
    if (at.matches('.handle')) return
    const p = get().phases[k]
    ui.drag = { phase: k, x: e.clientX, per: wide && Math.max(6, wide / p.epochs), change: {}, edge: at.matches('.edge') }
    root.setPointerCapture(e.pointerId); move(e); e.preventDefault()
  })
  const move = e => {
    const d = ui.drag, v = get()
    if (!d) return
    if (d.edge) {
      const n = Math.max(1, v.phases[d.phase].epochs + Math.round((e.clientX - d.x) / d.per))
      d.change = { epochs: n }; d.words = `Phase ${d.phase + 1}: ${times(n, 'epoch')}.`
    } else {
      const rows = [...root.querySelectorAll('[role=rowheader]')].map(r => r.getBoundingClientRect())
      const j = rows.findIndex(r => e.clientY < r.bottom), i = rows.length - 1 - (j < 0 ? rows.length - 1 : j)
      d.change = { start: i }; d.words = `Phase ${d.phase + 1} trains from ${v.stages[i]} on.`
    }
    draw()
  }
  const drop = e => {
    const d = ui.drag
    if (!d) return
    ui.drag = null
    const [what, value] = Object.entries(d.change)[0] || [], p = get().phases[d.phase]
    if (e.type === 'pointerup' && what && p[what] !== value) ask({ do: what, phase: d.phase, value })
    draw()
  }
  root.addEventListener('pointermove', move)
  root.addEventListener('pointerup', drop)
  root.addEventListener('pointercancel', drop)
}

// ---- slider over frames, for drift and budget

const slider = (v, at, id, ...text) => h('div', { class: 'ask' }, h('label', { for: id + 's' }, ...text),
  h('input', { ...own, type: 'range', id: id + 's', min: 0, max: v.frames.length - 1, step: 1, value: at,
    'aria-valuetext': v.frames[at].words, disabled: v.frames.length < 2 }))
const table = (heads, rows) => h('div', { class: 'scroll' },
  h('table', {}, h('thead', {}, h('tr', {}, heads.map(t => h('th', { scope: 'col' }, t)))), h('tbody', {}, rows)))

function drift(v, ui, id) {
  const f = v.frames[ui.at]
  const axis = h('span', { class: 'axis', 'aria-hidden': 'true' },
    v.ticks.filter((_, i) => i % 2 === 0).map(t => h('span', { style: `left:${100 * t.at}%` }, t.text)))
  const bar = (share, kind) => h('span', { class: `bar ${kind}`, 'aria-hidden': 'true' }, h('span', { style: `width:${100 * share}%` }))
  const rows = f.rows.slice().reverse().map(r => h('tr', { class: r.broken ? 'broken' : '' }, h('th', { scope: 'row' }, r.stage),
    h('td', {}, h('span', { class: 'state ' + r.state }, r.state && glyph(v.glyphs[r.state]), r.word)),
    h('td', { class: 'wide' }, bar(r.place, r.state || 'start'), h('span', { class: 'figure' }, r.far)), h('td', {}, r.buffers),
    v.cka && h('td', {}, r.cka != null && bar(r.cka, 'alike'), h('span', { class: 'figure' }, r.like))))
  return [head(v, id), slider(v, ui.at, id, `${v.unit} ${f.at}`, h('span', { class: 'soft' }, ` of ${v.frames.at(-1).at}`)), status(f.words),
    table(['stage', 'state', h('span', {}, 'weights moved', axis), 'buffers moved', ...(v.cka ? ['features alike'] : [])], rows), h('p', { class: 'soft' }, v.notes)]
}

function budget(v, ui, id) {
  const f = v.frames[ui.at], first = v.xticks[0].at, last = v.xticks.at(-1).at, X = x => 1000 * x, Y = y => 1000 * (1 - y)
  const path = ps => ps.map(([x, y]) => `${X(x)},${Y(y)}`).join(' ')
  const band = l => path([...l.points.map(p => [p.x, p.high]), ...l.points.map(p => [p.x, p.low]).reverse()])
  const curves = v.lines.flatMap(l => [h('polygon', { points: band(l), style: `--c:${l.colour}` }),
    h('polyline', { points: path(l.points.map(p => [p.x, p.y])), style: `--c:${l.colour}`, 'stroke-dasharray': l.dash })])
  const marks = v.lines.flatMap(l => l.points.map(p => glyph(v.glyphs[l.mark], `--c:${l.colour};left:${100 * p.x}%;bottom:${100 * p.y}%`)))
  return [head(v, id), slider(v, ui.at, id, 'I have ', h('output', {}, f.at.toLocaleString('en')), ' labels'),
    h('div', { class: 'answer ' + f.kind, role: 'status', 'aria-live': 'polite' }, h('p', { class: 'big' }, f.headline), ...f.says.map(s => h('p', {}, s))),
    h('div', { class: 'figure-box', role: 'img', 'aria-label': v.alt }, h('span', { class: 'soft' }, v.metric), h('div', { class: 'plot' },
      h('span', { class: 'void', style: `left:0;width:${100 * first}%` }), h('span', { class: 'void', style: `left:${100 * last}%;right:0` }),
      v.yticks.map(t => h('span', { class: 'y', style: `bottom:${100 * t.at}%` }, h('span', {}, t.text))),
      h('svg', { viewBox: '0 0 1000 1000', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, curves), marks,
      h('span', { class: 'cursor', style: `left:${100 * f.x}%` }), v.xticks.map(t => h('span', { class: 'x', style: `left:${100 * t.at}%` }, t.text))),
    h('span', { class: 'soft end' }, 'training labels')),
    table(['plan', ...f.columns], f.rows.map((r, i) => h('tr', {},
      h('th', { scope: 'row' }, glyph(v.glyphs[v.lines[i].mark], `--c:${v.lines[i].colour}`), r[0]), r.slice(1).map(c => h('td', {}, c))))),
    h('p', { class: 'soft' }, v.notes)]
}

function look(model, el) {
  const id = 'tcv' + ++count, get = () => model.get('view'), ui = { sel: 0, at: 0, edits: 0 }
  const root = h('section', { class: 'tcv', 'aria-labelledby': id, ...own })
  const draw = () => {
    const v = get(), make = { timeline, drift, budget }[v.kind]
    if (v.frames) ui.at = Math.max(0, Math.min(v.frames.length - 1, model.get('at')))
    if (v.edits !== ui.edits) { ui.edits = v.edits; ui.sel = v.pick ?? 0 }
    const shell = root.cloneNode(false), held = root.contains(document.activeElement) && document.activeElement.matches('.handle')
    shell.append(...make(v, ui, id)); morph(root, shell)
    if (held) root.querySelector('.handle[tabindex="0"]').focus({ preventScroll: true })
  }
  if (get().kind === 'timeline') steer(root, wish => model.send(wish), get, ui, draw)
  root.addEventListener('input', e => { if (e.target.type === 'range') { model.set('at', +e.target.value); model.save_changes(); draw() } })
  root.addEventListener('keydown', e => {
    const f = get().frames, near = f && { PageUp: 1, PageDown: -1 }[e.key]
    if (!near || e.target.type !== 'range') return
    let i = ui.at + near
    while (f[i]?.kind && f[i].kind !== 'measured') i += near
    if (f[i]) { model.set('at', i); model.save_changes(); draw() }
    e.preventDefault(); e.stopPropagation()
  })
  model.on('change:view', draw); model.on('change:at', draw)
  draw(); el.append(root)
  return () => { model.off('change:view', draw); model.off('change:at', draw) }
}

export default {
  render({ model, el }) {
    if (model.get('view').kind !== 'explorer') return look(model, el)
    const explorer = new Explorer(model, el)
    return () => explorer.close()
  },
}
