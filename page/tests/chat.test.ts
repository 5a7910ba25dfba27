import assert from 'node:assert/strict'
import { test } from 'node:test'
import { GatewayError } from '../src/api/errors.ts'
import type { Model } from '../src/api/types.ts'
import { readChunk } from '../src/chat/chunks.ts'
import {
  checkPictureRoom, checkRoom, MOST_BYTES, MOST_FILES, MOST_PICTURES, pictures, readText, saidTo, withFiles,
} from '../src/chat/attach.ts'
import { forked, has, MOST_WAYS, switched } from '../src/chat/branches.ts'
import { bounded, DEFAULTS, restored, titleOf, type Conversation, type Message } from '../src/chat/keep.ts'
import { choose } from '../src/chat/models.ts'
import { exported, imported, merged } from '../src/chat/transfer.ts'

const talk = (id: string, updated: number, text = 'x', messages = 2): Conversation => ({
  id,
  title: id,
  model: 'm',
  updated,
  messages: Array.from({ length: messages }, (_, i) => ({ role: i % 2 ? 'assistant' : 'user', content: text })),
})
const ids = (kept: Conversation[]): string[] => kept.map(({ id }) => id)

test('a chunk gives its text, and what the gateway adds', () => {
  const facts = { request: 'r', route: [], tokens_per_s: 31, ttft_ms: 80, reroutes: [] }
  const chunk = { choices: [{ index: 0, delta: { content: 'sea' }, finish_reason: null }], shoal: facts }
  assert.deepEqual(readChunk(JSON.stringify(chunk)), { text: 'sea', facts })
})

test('the finishing and the usage chunk give no text', () => {
  assert.deepEqual(readChunk('{"choices":[{"delta":{},"finish_reason":"length"}]}'), { finish: 'length' })
  assert.deepEqual(readChunk('{"choices":[],"usage":{"completion_tokens":7}}'), { tokens: 7 })
})

test('a failure midway is an error with the words of the gateway', () => {
  const failed = '{"error":{"message":"block 3 is served by nobody","code":"no_coverage"}}'
  assert.throws(
    () => readChunk(failed),
    (error) => error instanceof GatewayError && error.message.includes('block 3') && error.code === 'no_coverage',
  )
})

test('the newest conversations are kept, as many as there is room for', () => {
  const all = [talk('old', 1), talk('new', 3), talk('middle', 2)]
  assert.deepEqual(ids(bounded(all).kept), ['new', 'middle', 'old'])
  assert.deepEqual(ids(bounded(all, 2).kept), ['new', 'middle'])
  assert.equal(bounded(all, 2).cut, 0)
})

test('one that is too large is left out, what is behind it is not, and somebody is told', () => {
  const { kept, cut } = bounded([talk('big', 2, 'x'.repeat(500)), talk('old', 1), talk('new', 3)], 50, 600)
  assert.deepEqual([ids(kept), cut], [['new', 'old'], 1])
})

test('a large one leaves room to others, and loses the ways that are not shown before its messages', () => {
  const { kept } = bounded([talk('large', 2, 'x'.repeat(100), 40), talk('old', 1)], 50, 2000)
  assert.deepEqual(ids(kept), ['large', 'old'])
  const messages = forked(line('a', 'x'.repeat(900)), 0, { role: 'user', content: 'b' })
  const forks = bounded([{ ...talk('forks', 1), messages }], 50, 600)
  assert.deepEqual([forks.kept[0]?.messages, forks.cut], [[{ role: 'user', content: 'b' }], 1])
  assert.deepEqual(bounded([talk('huge', 2, 'x'.repeat(5000)), talk('old', 1)], 50, 2000), { kept: [talk('old', 1)], cut: 1 })
})

test('pictures have a part of the room: those of the newest are kept, of the others the words', () => {
  const picture = `data:image/png;base64,${'A'.repeat(400)}`
  const shows = (id: string, updated: number): Conversation => ({
    ...talk(id, updated),
    messages: forked([{ role: 'user', content: id, pictures: [picture] }], 0, { role: 'user', content: 'b', pictures: [picture] }),
  })
  const { kept, cut } = bounded([shows('old', 1), shows('new', 2)], 50, 5000, 1000)
  assert.equal(cut, 1)
  assert.deepEqual(kept[0], shows('new', 2))
  const [old] = kept[1]?.messages ?? []
  assert.deepEqual([old?.pictures, old?.forgotten, old?.fork?.ways[0]?.[0]?.forgotten], [undefined, 1, 1])
  assert.deepEqual(restored(JSON.stringify(kept)), kept)
  const odd = ['data:image/svg+xml;base64,AA', 'https://example.org/a.png', 7].map((one) => ({
    ...talk('a', 1), messages: [{ role: 'user', content: 'x', pictures: [one] }],
  }))
  assert.deepEqual(restored(JSON.stringify(odd)), [])
})

test('a newest one that alone is too long loses its beginning, question and answer together', () => {
  const [kept] = bounded([talk('long', 1, 'x'.repeat(100), 40)], 50, 2000).kept
  assert.ok(kept && kept.messages.length > 0 && kept.messages.length < 40)
  assert.equal(kept.messages[0]?.role, 'user')
  assert.ok(JSON.stringify(kept).length <= 2000)
})

test('what was stored comes back, and what makes no sense does not', () => {
  const whole = talk('a', 1)
  const odd = { ...whole, messages: [{ role: 'system', content: 1 }] }
  assert.deepEqual(restored(JSON.stringify([whole, null, 7, { id: 'b' }, odd])), [whole])
  for (const bad of [null, '', '{', '{}', 'null']) assert.deepEqual(restored(bad), [])
})

test('a title is the first words of the question', () => {
  assert.equal(titleOf('  Why?\nBecause.'), 'Why?')
  assert.equal(titleOf('x'.repeat(100)).length, 58)
})

test('a question goes to the wanted model, else to one that is whole', () => {
  const model = (id: string, missing: string[] = []): Model =>
    ({ id, digest: id, n_blocks: 3, format: 'int8', formats: [], runs: [], missing })
  const models = [model('torn', ['0:3']), model('whole')]
  assert.equal(choose(models, 'torn')?.id, 'torn')
  assert.equal(choose(models, 'gone')?.id, 'whole')
  assert.equal(choose([], 'gone'), null)
})

const said = (messages: Message[]): string[] => messages.map(({ content }) => content)
const line = (...words: string[]): Message[] =>
  words.map((content, i) => ({ role: i % 2 ? 'assistant' : 'user', content }))

test('an edited question goes another way, and both ways are kept to their ends', () => {
  const first = line('a', 'b', 'c', 'd')
  const second = [...forked(first, 2, { role: 'user', content: 'C' }), { role: 'assistant' as const, content: 'D' }]
  assert.deepEqual(said(second), ['a', 'b', 'C', 'D'])
  const back = switched(second, 2, 0)
  assert.deepEqual(said(back), ['a', 'b', 'c', 'd'])
  assert.deepEqual(said(switched(back, 2, 1)), ['a', 'b', 'C', 'D'])
  assert.equal(switched(back, 2, 0), back)
  assert.equal(switched(back, 1, 1), back)
})

test('a way may fork again, and comes back with the way of it that was shown', () => {
  const inner = forked(line('a', 'b'), 1, { role: 'assistant', content: 'B' })
  const outer = forked(inner, 0, { role: 'user', content: 'A' })
  const back = switched(outer, 0, 0)
  assert.deepEqual(said(back), ['a', 'B'])
  assert.deepEqual(said(switched(back, 1, 0)), ['a', 'b'])
  assert.deepEqual(restored(JSON.stringify([{ ...talk('x', 1), messages: back }]))[0]?.messages.map((m) => m.content), ['a', 'B'])
})

test('only so many ways are kept, the newest', () => {
  let messages = line('0')
  for (let i = 1; i < 50; i++) messages = forked(messages, 0, { role: 'user', content: `${i}` })
  const fork = messages[0]?.fork
  assert.equal(fork?.ways.length, MOST_WAYS)
  assert.deepEqual([fork?.at, fork?.ways.at(-1)], [MOST_WAYS - 1, []])
  assert.deepEqual(said(switched(messages, 0, 0)), ['30'])
})

test('the way on the screen is never the one that makes room', () => {
  let messages = line('0')
  for (let i = 1; i < MOST_WAYS; i++) messages = forked(messages, 0, { role: 'user', content: `${i}` })
  messages = forked(switched(messages, 0, 0), 0, { role: 'user', content: 'new' })
  assert.equal(messages[0]?.fork?.ways.length, MOST_WAYS)
  assert.deepEqual(said(switched(messages, 0, 0)), ['0'])
  assert.deepEqual(said(switched(messages, 0, 1)), ['2'])
})

test('a search finds words in titles and in every way', () => {
  const messages = forked(line('Where do Cod live?', 'In the sea.'), 0, { role: 'user', content: 'Where do eels live?' })
  const one = { ...talk('x', 1), title: 'Fish', messages }
  for (const words of ['fish', 'COD sea', 'eels', '', ' fish  eels ']) assert.ok(has(one, words), words)
  assert.ok(!has(one, 'fish whale'))
})

test('what was exported is imported, and what is damaged or something else is refused whole', () => {
  const all = [{ ...talk('a', 1), settings: { ...DEFAULTS, system: 'Be short.' } }, talk('b', 2)]
  assert.deepEqual(imported(exported(all)), all)
  for (const bad of ['', '[]', 'null', '{"kind":"shoal.conversations"}']) assert.throws(() => imported(bad), Error)
  const odd = JSON.parse(exported(all))
  const answered = { route: [], reroutes: [], tokens: 1, tokensPerSecond: null, ttftMs: 2 }
  for (const wrong of [{ role: 'user', content: 'x', fork: { at: 3, ways: [] } }, { role: 'user' },
    ...[
      { route: 1 },
      { route: [{ peer: 'p', start: 0 }] },
      { reroutes: [{ lost: 'p', gap_s: 1 }] },
      { reroutes: [{ lost: ['p'] }] },
      { tokensPerSecond: undefined },
      { ttftMs: 'soon' },
      { protection: { asked: 'audited' } },
    ].map((bad) => ({ role: 'assistant', content: 'x', answered: { ...answered, ...bad } }))]) {
    odd.conversations[1].messages = [wrong]
    assert.throws(() => imported(JSON.stringify(odd)), /damaged/)
  }
  odd.conversations[1].messages = [{ role: 'assistant', content: 'x', answered }]
  assert.equal(imported(JSON.stringify(odd)).length, 2)
})

test('of two conversations with one id the one that was changed last stays', () => {
  const all = merged([talk('a', 1, 'old'), talk('b', 5)], [talk('a', 2, 'new'), talk('b', 4, 'old'), talk('c', 1)])
  assert.deepEqual(all.map(({ id, messages }) => `${id}${messages[0]?.content}`), ['anew', 'bx', 'cx'])
})

test('a file goes into the question as text that ends where it should', () => {
  const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)
  const file = readText('a`\n.md', bytes('one\n````\ntwo\n'))
  assert.equal(withFiles('Read.', [file]), 'Read.\n\na__.md:\n`````\none\n````\ntwo\n`````')
  assert.equal(withFiles('', [readText('b', bytes('x'))]), 'b:\n```\nx\n```')
  for (const bad of [new Uint8Array([255, 254]), bytes('a\0b'), bytes(' \n'), new Uint8Array(MOST_BYTES + 1).fill(97)]) {
    assert.throws(() => readText('c.bin', bad), /c\.bin/)
  }
  const half = { name: 'h', text: '', bytes: MOST_BYTES / 2 }
  checkRoom([half], 'h', MOST_BYTES / 2)
  assert.throws(() => checkRoom([half], 'big', MOST_BYTES / 2 + 1), /big is too large/)
  assert.throws(() => checkRoom(Array(MOST_FILES).fill({ ...half, bytes: 1 }), 'one', 1), /At most 8 files/)
})

test('pictures stand before the words about them, and are not among the texts', () => {
  const drawing = { name: 'a.png', text: '', bytes: MOST_BYTES, picture: 'data:image/png;base64,AA' }
  assert.equal(withFiles('Read.', [drawing]), 'Read.')
  assert.deepEqual(pictures([drawing, readText('b', new TextEncoder().encode('x'))]), [drawing.picture])
  checkRoom([drawing], 'b', MOST_BYTES)
  checkPictureRoom([drawing])
  assert.throws(() => checkPictureRoom(Array(MOST_PICTURES).fill(drawing)), /At most 4 pictures/)
  const shown = { type: 'image_url', image_url: { url: drawing.picture } }
  const asked = (content: string, all?: string[]) => saidTo({ role: 'user', content, ...(all && { pictures: all }) }).content
  assert.deepEqual(asked('What?', [drawing.picture]), [shown, { type: 'text', text: 'What?' }])
  assert.deepEqual(asked('', [drawing.picture]), [shown])
  assert.equal(asked('What?'), 'What?')
  assert.equal(titleOf(''), 'A picture')
})
