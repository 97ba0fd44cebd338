"A small page with a fake model: draws a widget in a browser and carries wishes between the page and Python. Used by tests and tools/screenshots.py."
from contextlib import contextmanager
from pathlib import Path

import transfer_course

ASSETS = Path(transfer_course.__file__).parent/'assets'
CHROMIUM = Path('/usr/bin/chromium')
SITE = 'http://course.test/'
PAGE = '''<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A view</title><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/widgets.css"><style>body { margin: 0; padding: 16px; background: Canvas; color: CanvasText; font-family: system-ui }
h1, h2 { position: absolute; clip-path: inset(50%) }
:root { color-scheme: light dark } </style></head>
<body><main><h1>Lesson</h1><h2>Part</h2><button id="before">before</button><div id="el"></div><button id="after">after</button></main>
<script type="module">
import widgets from '/widgets.js'
const state = JSON.parse(await window.state()), on = {}
window.wishes = []
window.put = text => { const s = JSON.parse(text); Object.assign(state, s); for (const k in s) for (const f of on['change:' + k] || []) f()
  if (s.alive) for (const f of on['msg:custom'] || []) f({ alive: true }) }
const model = { get: k => state[k], set: (k, v) => { state[k] = v }, save_changes: () => window.moved(JSON.stringify(state)).then(window.put),
  on: (e, f) => (on[e] ||= []).push(f), off: (e, f) => { on[e] = (on[e] || []).filter(g => g !== f) },
  send: w => { window.wishes.push(w); window.hear(w).then(window.put) } }
window.end = widgets.render({ model, el: document.getElementById('el') })
</script></body></html>'''


@contextmanager
def browser():
    "Chromium without a window."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=str(CHROMIUM), args=['--no-sandbox', '--disable-background-networking'])
        try: yield b
        finally: b.close()


def show(b, widget, **options):
    """A page that shows `widget`; wishes go to it, and what the page keeps (the slider, opened rows).

    Notes errors, dialogs and requests to elsewhere in page.faults."""
    import json
    context = b.new_context(**dict(viewport=dict(width=900, height=700)) | options); page = context.new_page(); page.faults = []
    def serve(route):
        path = route.request.url.removeprefix(SITE)
        if not route.request.url.startswith(SITE): page.faults.append(f'asked for {route.request.url}'); return route.abort()
        if path in ('widgets.js', 'widgets.css'):
            return route.fulfill(body=(ASSETS/path).read_text(encoding='utf-8'), content_type='text/javascript' if path.endswith('js') else 'text/css')
        return route.fulfill(body=PAGE if not path else '', content_type='text/html')
    keeps = [k for k in ('at', 'opened') if hasattr(widget, k)]
    def state(**more): return json.dumps(dict(view=widget.view) | {k: getattr(widget, k) for k in keeps} | more)
    def hear(wish): widget._handle_custom_msg(wish, []); return state(alive=True)
    def moved(text):
        for k in keeps: setattr(widget, k, json.loads(text)[k])
        return state()
    context.route('**/*', serve)
    for name, f in dict(state=state, hear=hear, moved=moved).items(): page.expose_function(name, f)
    page.on('pageerror', lambda e: page.faults.append(str(e)))
    page.on('dialog', lambda d: (page.faults.append(f'dialog {d.message}'), d.dismiss()))
    page.on('console', lambda m: page.faults.append(m.text) if m.type == 'error' and 'favicon' not in m.text else None)
    page.goto(SITE); page.wait_for_selector('.tcv h3, .tc-title')
    return page
