// Draws the facts that Python gives, and asks Python for every change. Texts become text nodes, never markup.
const SVG = 'http://www.w3.org/2000/svg'
let count = 0

function h(tag, attrs = {}, ...kids) {
  const e = ['svg', 'path', 'polygon', 'polyline'].includes(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag)
  for (const [k, v] of Object.entries(attrs)) if (v != null && v !== false) e.setAttribute(k, v === true ? '' : v)
  e.append(...kids.flat(9).filter(k => k != null && k !== false))
  return e
}

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

const glyph = (v, kind, style) => h('svg', { viewBox: '0 0 16 16', class: 'glyph', 'aria-hidden': 'true', style }, h('path', { d: v.glyphs[kind], 'fill-rule': 'evenodd' }))
const hidden = text => h('span', { class: 'unseen' }, text)
const row = (...cells) => h('div', { role: 'row', class: 'row' }, ...cells)
const head = (v, id, ...more) => h('header', {}, h('h3', { id }, v.title), ...more)
const status = text => h('p', { role: 'status', 'aria-live': 'polite', class: 'says' }, text)
const own = { 'data-lm-suppress-shortcuts': 'true' }   // JupyterLab leaves the keys of such an element alone
const times = (n, one) => `${n} ${one}${n === 1 ? '' : 's'}`

// ---- thaw timeline

const KEYS = { ArrowUp: 'higher', ArrowDown: 'lower', ArrowRight: 'longer', ArrowLeft: 'shorter', '+': 'faster', '=': 'faster', '-': 'slower',
  Insert: 'insert', i: 'insert', Delete: 'delete', u: 'undo', Backspace: 'undo' }
const BUTTONS = [['higher', 'Freeze one more'], ['lower', 'Thaw one more'], ['shorter', 'Epoch less'], ['longer', 'Epoch more'], ['slower', 'Slower'], ['faster', 'Faster'],
  ['insert', 'Insert phase'], ['delete', 'Delete phase'], ['undo', 'Undo']]

function timeline(v, ui, id) {
  const top = v.stages.length - 1, now = v.now, drag = ui.drag || {}
  const phases = v.phases.map((p, k) => drag.phase === k ? { ...p, ...drag.change } : p)
  const sel = ui.sel = Math.min(ui.sel, phases.length - 1)
  const line = k => now && now.done.length > k ? Math.min(100, 100 * now.done[k] / v.phases[k].epochs) : 0
  const handle = (p, k) => h('div', { role: 'columnheader', class: 'phase' + (k === sel ? ' on' : ''), 'data-p': k },
    h('div', { ...own, role: 'slider', class: 'handle', tabindex: k === sel ? 0 : -1, 'data-p': k, 'aria-label': `Phase ${k + 1}: first stage that trains`, 'aria-orientation': 'vertical',
      'aria-valuemin': 0, 'aria-valuemax': top, 'aria-valuenow': p.start, 'aria-valuetext': v.phases[k].words, 'aria-describedby': id + 'k' },
    h('b', {}, `Phase ${k + 1}`), h('span', {}, times(p.epochs, 'epoch'), h('i', {}, ` · ${p.first}–${p.first + p.epochs - 1}`))),
    h('span', { class: 'done', style: `width:${line(k)}%` }), h('span', { class: 'edge', 'data-p': k }))
  const cell = (p, k, i) => {
    const c = p.cells[i], train = i >= p.start
    return h('div', { role: 'cell', 'data-p': k, 'data-s': i, class: `cell ${train ? 'train' : 'frozen'}${i === p.start ? ' cut' : ''}${k === sel ? ' on' : ''}`,
      style: `--heat:${Math.round(100 * (c.heat ?? .5))}%;--at:${line(k)}%` },
    glyph(v, train ? 'train' : 'frozen'), h('span', { class: 'word' }, train ? 'trains ' : 'frozen'), train && h('span', {}, c.rate),
    now?.running && now.phase === k && h('span', { class: 'now' }))
  }
  const rate = v.low === v.high ? v.low : `${v.low} to ${v.high}`
  return [
    head(v, id, h('p', { class: 'soft' }, v.sub)),
    h('div', { class: 'scroll' }, h('div', { role: 'table', 'aria-labelledby': id, class: 'grid', style: `grid-template-columns:max-content ${phases.map(p => `minmax(4.4rem,${p.epochs}fr)`).join(' ')}` },
      row(h('div', { role: 'columnheader', class: 'name soft' }, 'stage'), ...phases.map(handle)),
      ...v.stages.map((_, j) => top - j).map(i => row(h('div', { role: 'rowheader', class: 'name' }, v.stages[i]), ...phases.map((p, k) => cell(p, k, i)))))),
    h('p', { class: 'legend' }, h('span', {}, h('i', { class: 'chip frozen' }), glyph(v, 'frozen'), ' frozen'), h('span', {}, h('i', { class: 'chip heat' }), glyph(v, 'train'), ` trains, peak rate ${rate}`)),
    status(drag.words || v.says || v.phases[sel].words),
    h('div', { class: 'tools' }, ...BUTTONS.map(([act, text]) => h('button', { type: 'button', tabindex: -1, 'data-do': act, disabled: act === 'undo' && !v.undo }, text))),
    h('p', { class: 'soft keys', id: id + 'k' }, 'Keys: ↑ ↓ freeze or thaw a stage, ← → epochs, + − rate, Page Up and Page Down choose a phase, Insert, Delete, U undoes. Or drag: a cell sets the first stage that trains, a right edge the epochs.')]
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
  h('input', { ...own, type: 'range', id: id + 's', min: 0, max: v.frames.length - 1, step: 1, value: at, 'aria-valuetext': v.frames[at].words, disabled: v.frames.length < 2 }))
const table = (heads, rows) => h('div', { class: 'scroll' }, h('table', {}, h('thead', {}, h('tr', {}, heads.map(t => h('th', { scope: 'col' }, t)))), h('tbody', {}, rows)))

function drift(v, ui, id) {
  const f = v.frames[ui.at]
  const axis = h('span', { class: 'axis', 'aria-hidden': 'true' }, v.ticks.filter((_, i) => i % 2 === 0).map(t => h('span', { style: `left:${100 * t.at}%` }, t.text)))
  const bar = (share, kind) => h('span', { class: `bar ${kind}`, 'aria-hidden': 'true' }, h('span', { style: `width:${100 * share}%` }))
  const rows = f.rows.slice().reverse().map(r => h('tr', { class: r.broken ? 'broken' : '' }, h('th', { scope: 'row' }, r.stage),
    h('td', {}, h('span', { class: 'state ' + r.state }, r.state && glyph(v, r.state), r.word)),
    h('td', { class: 'wide' }, bar(r.place, r.state || 'start'), h('span', { class: 'figure' }, r.far)), h('td', {}, r.buffers),
    v.cka && h('td', {}, r.cka != null && bar(r.cka, 'alike'), h('span', { class: 'figure' }, r.like))))
  return [head(v, id), slider(v, ui.at, id, `${v.unit} ${f.at}`, h('span', { class: 'soft' }, ` of ${v.frames.at(-1).at}`)), status(f.words),
    table(['stage', 'state', h('span', {}, 'weights moved', axis), 'buffers moved', ...(v.cka ? ['features alike'] : [])], rows), h('p', { class: 'soft' }, v.notes)]
}

function budget(v, ui, id) {
  const f = v.frames[ui.at], first = v.xticks[0].at, last = v.xticks.at(-1).at, X = x => 1000 * x, Y = y => 1000 * (1 - y)
  const path = ps => ps.map(([x, y]) => `${X(x)},${Y(y)}`).join(' ')
  const curves = v.lines.flatMap(l => [h('polygon', { points: path([...l.points.map(p => [p.x, p.high]), ...l.points.map(p => [p.x, p.low]).reverse()]), fill: l.colour }),
    h('polyline', { points: path(l.points.map(p => [p.x, p.y])), stroke: l.colour, 'stroke-dasharray': l.dash })])
  const marks = v.lines.flatMap(l => l.points.map(p => glyph(v, l.mark, `fill:${l.colour};left:${100 * p.x}%;bottom:${100 * p.y}%`)))
  return [head(v, id), slider(v, ui.at, id, 'I have ', h('output', {}, f.at.toLocaleString('en')), ' labels'),
    h('div', { class: 'answer ' + f.kind, role: 'status', 'aria-live': 'polite' }, h('p', { class: 'big' }, f.headline), ...f.says.map(s => h('p', {}, s))),
    h('div', { class: 'figure-box', role: 'img', 'aria-label': v.alt }, h('span', { class: 'soft' }, v.metric), h('div', { class: 'plot' },
      h('span', { class: 'void', style: `left:0;width:${100 * first}%` }), h('span', { class: 'void', style: `left:${100 * last}%;right:0` }),
      v.yticks.map(t => h('span', { class: 'y', style: `bottom:${100 * t.at}%` }, h('span', {}, t.text))),
      h('svg', { viewBox: '0 0 1000 1000', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, curves), marks,
      h('span', { class: 'cursor', style: `left:${100 * f.x}%` }), v.xticks.map(t => h('span', { class: 'x', style: `left:${100 * t.at}%` }, t.text))),
    h('span', { class: 'soft end' }, 'training labels')),
    table(['plan', ...f.columns], f.rows.map((r, i) => h('tr', {}, h('th', { scope: 'row' }, glyph(v, v.lines[i].mark, `fill:${v.lines[i].colour}`), r[0]), r.slice(1).map(c => h('td', {}, c))))),
    h('p', { class: 'soft' }, v.notes)]
}

function render({ model, el }) {
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

export default { render }
