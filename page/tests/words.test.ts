import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { test } from 'node:test'
import { requests } from '../dev/scenes.ts'
import { linesFor, shell } from '../src/connect/lines.ts'
import { bound, parts, total } from '../src/requests/times.ts'
import { ago, blocks, list, many, ms, perSecond, spanText } from '../src/ui/format.ts'
import { badge, isProtection } from '../src/ui/protection.ts'
import { Colours, N_COLOURS, fullName, nameOf } from '../src/ui/names.ts'

test('spans are said with both ends served', () => {
  assert.deepEqual([blocks(0, 10), blocks(7, 8), spanText('10:20'), spanText('odd')], ['0–9', '7', '10–19', 'odd'])
})

test('times have the digits that mean something', () => {
  assert.deepEqual([0.42, 12.4, 1234, 45_000, null].map(ms), ['0.4 ms', '12 ms', '1.2 s', '45 s', '–'])
  assert.deepEqual([3.14, 31.4, null].map(perSecond), ['3.1 tok/s', '31 tok/s', '–'])
  const said = [0, 40, 200, 7300, 200_000].map((seconds) => ago(0, seconds))
  assert.deepEqual(said, ['just now', '40 s ago', '3 min ago', '2 h ago', '2 d ago'])
  assert.equal(ago(10, 0), 'just now') // a gateway whose clock is ahead
})

test('a badge says what protection an answer has, and who checked what', () => {
  const fine = { asked: 'audited', level: 'audited', signed_by: ['a', 'b'], audits: [], faults: [] }
  assert.deepEqual([badge(null), badge({ ...fine, asked: 'fast' })], [null, null])
  assert.deepEqual([badge(fine)?.word, badge(fine)?.tone, badge(fine)?.lines[0]], ['audited', 'good', 'Signed by 2 peers'])
  const found = { peer: 'a', verdict: 'cheat' as const, by: ['b'], what: 'it has signed other rows' }
  const false_ = badge({ ...fine, level: 'fast', audits: [found] })
  assert.deepEqual([false_?.word, false_?.tone, false_?.lines[1]], ['false', 'bad', found.what])
  const less = badge({ ...fine, level: 'fast', faults: ['why'] })
  assert.deepEqual([less?.word, less?.tone, less?.lines[1]], ['not audited', 'soft', 'why'])
  const proof = { peer: 'a', verdict: 'same' as const, by: ['me'], what: 'block 3' }
  const proved = badge({ ...fine, asked: 'proved', level: 'proved', audits: [proof] })
  assert.deepEqual([proved?.word, proved?.tone, proved?.lines.length], ['proved', 'good', 3])
  assert.match(proved?.lines[2] ?? '', /linear layers only/)
  const shown = { ...fine, asked: 'fast', level: 'attested', attested: [{ peer: 'a', shown: 'snp: ours' }] }
  assert.deepEqual(badge(shown), { word: 'attested', tone: 'good', lines: ['snp: ours'] })
  assert.ok(isProtection(shown) && !isProtection({ ...shown, attested: [null] }))
  assert.ok(isProtection(fine) && !isProtection(null) && !isProtection({ ...fine, audits: [null] }))
})

test('words are counted and joined', () => {
  assert.deepEqual([many(1, 'peer'), many(1200, 'peer')], ['1 peer', '1,200 peers'])
  assert.deepEqual([[], ['a'], ['a', 'b', 'c']].map(list), ['', 'a', 'a, b and c'])
})

test('a peer has the same name everywhere, and neighbours get different colours', () => {
  assert.deepEqual(nameOf('12D3KooWabcd'), nameOf('12D3KooWabcd'))
  const named = [
    ['12D3KooWNXj7WD9xwGQ7gcLCKLa3u3Tm1a5pDVtPQ3uoomATR7M6', 'Garfish-R7M6'],
    ['12D3KooWJTffn7WGxvo6EUQWEoazTUNZPmipuRtHEiCvgGyfFJAp', 'Mullet-FJAp'],
    ['12D3KooWCcbRUyvfhkPUsvtFJDz7MdoLu4HCGUTujc9DweN39Tn1', 'Barbel-9Tn1'],
  ]
  for (const [peer = '', name] of named) assert.equal(fullName(peer), name)
  const colours = new Colours()
  const given = Array.from({ length: N_COLOURS }, (_, i) => colours.of(`p${i}`))
  assert.equal(new Set(given).size, N_COLOURS)
  assert.equal(colours.of('p0'), given[0])
})

test('a step splits over hops and kinds, and the shares make a whole', () => {
  const request = requests('whole')[0]
  assert.ok(request)
  const split = parts(request)
  assert.ok(Math.abs(split.reduce((sum, { share }) => sum + share, 0) - 1) < 1e-9)
  assert.ok(split.every((part) => part.ms > 0))
  assert.ok(Math.abs(total(request) - 26.6) < 1e-9)
  assert.equal(bound(request), 'compute')
  assert.equal(bound({ ...request, hops: [] }), null)
})

test('a model named to harm harms neither a terminal nor a program', () => {
  const name = `a'; echo harmed; "$(id)\u001b[2J`
  const out = execFileSync('sh', ['-c', `printf %s ${shell(name)}`], { encoding: 'utf8' })
  assert.equal(out, name.replace('\u001b', ''))
  const { text } = linesFor('http://h', name, false).find(({ id }) => id === 'javascript') ?? { text: '' }
  assert.equal(JSON.parse(/model: (".*"),/.exec(text)?.[1] ?? ''), name)
})

test('the lines name the gateway and the model, and never show a key', () => {
  for (const { text } of linesFor('http://127.0.0.1:4480', 'tiny', true)) {
    assert.match(text, /http:\/\/127\.0\.0\.1:4480\/v1/)
    assert.match(text, /tiny/)
    assert.match(text, /YOUR_SHOAL_KEY/)
  }
})
