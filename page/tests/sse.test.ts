import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EventParser, MAX_EVENT, events } from '../src/api/sse.ts'

const WIRE = ': hello\n\nevent: swarm\ndata: {"a":1}\n\ndata: one\ndata: two\n\nevent: token\r\ndata: x\r\n\r\n'
const MEANT = [
  { name: 'swarm', data: '{"a":1}' },
  { name: 'message', data: 'one\ntwo' },
  { name: 'token', data: 'x' },
]

test('events come out whole, whatever the pieces they came in', () => {
  for (let size = 1; size <= WIRE.length; size++) {
    const parser = new EventParser()
    const got = []
    for (let at = 0; at < WIRE.length; at += size) got.push(...parser.push(WIRE.slice(at, at + size)))
    assert.deepEqual(got, MEANT, `pieces of ${size}`)
  }
})

test('a comment is no event, and an event without data is none', () => {
  assert.deepEqual(new EventParser().push(': keep-alive\n\nevent: empty\n\n'), [])
})

test('a half event waits for its end', () => {
  const parser = new EventParser()
  assert.deepEqual(parser.push('data: a\n'), [])
  assert.deepEqual(parser.push('\n'), [{ name: 'message', data: 'a' }])
})

test('an event without end is refused before it fills the memory', () => {
  const parser = new EventParser()
  const line = `data: ${'x'.repeat(1_000_000)}\n`
  assert.throws(() => {
    for (let sent = 0; sent <= 2 * MAX_EVENT; sent += line.length) parser.push(line)
  }, /too long/)
})

test('letters that are cut between two reads stay whole', async () => {
  const bytes = new TextEncoder().encode('data: größer\n\n')
  const cut = bytes.indexOf(0xb6)
  const body = ReadableStream.from([bytes.slice(0, cut), bytes.slice(cut)]) as ReadableStream<Uint8Array>
  const got = []
  for await (const event of events(body, 1000)) got.push(event.data)
  assert.deepEqual(got, ['größer'])
})

test('a stream that goes silent is given up, and its connection freed', async () => {
  let cancelled = false
  const body = new ReadableStream<Uint8Array>({ cancel: () => void (cancelled = true) })
  await assert.rejects(events(body, 20).next(), /nothing came/)
  assert.equal(cancelled, true)
})
