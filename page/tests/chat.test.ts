import assert from 'node:assert/strict'
import { test } from 'node:test'
import { GatewayError } from '../src/api/errors.ts'
import type { Model } from '../src/api/types.ts'
import { readChunk } from '../src/chat/chunks.ts'
import { bounded, restored, titleOf, type Conversation } from '../src/chat/keep.ts'
import { choose } from '../src/chat/models.ts'

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
  assert.deepEqual(ids(bounded(all)), ['new', 'middle', 'old'])
  assert.deepEqual(ids(bounded(all, 2)), ['new', 'middle'])
  assert.deepEqual(ids(bounded([talk('big', 2, 'x'.repeat(500)), talk('new', 3)], 50, 600)), ['new'])
})

test('a newest one that alone is too long loses its beginning, question and answer together', () => {
  const [kept] = bounded([talk('long', 1, 'x'.repeat(100), 40)], 50, 2000)
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
