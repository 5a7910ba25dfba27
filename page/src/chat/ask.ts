/** One answer, streamed. */

import { GatewayError } from '../api/errors.ts'
import { call } from '../api/http.ts'
import { events } from '../api/sse.ts'
import { readChunk, type Piece } from './chunks.ts'
import type { Said } from './attach.ts'

export interface Question {
  model: string
  messages: Said[]
  max_tokens?: number
  temperature?: number
  top_p?: number
}

/** A swarm that re-routes or prefills a long prompt may be silent for a while; a gateway that died is not for ever. */
const IDLE_MS = 120_000

/**
 * The pieces of the answer as they come.
 *
 * Throws a GatewayError when it is refused or fails midway, also when the stream ends too early.
 */
export async function* ask(question: Question, signal: AbortSignal): AsyncGenerator<Piece> {
  const response = await call('v1/chat/completions', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', Accept: 'text/event-stream' },
    body: JSON.stringify({ ...question, stream: true, stream_options: { include_usage: true } }),
    signal,
  })
  if (!response.body) throw new GatewayError('The gateway answered without a body.', response.status)
  for await (const event of events(response.body, IDLE_MS)) {
    if (event.data === '[DONE]') return
    yield readChunk(event.data)
  }
  throw new GatewayError('The connection to the gateway broke before the answer was whole.', 0)
}
