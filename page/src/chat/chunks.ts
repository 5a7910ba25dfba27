/** What a streamed answer's chunks say. Pure. */

import { GatewayError, errorOf } from '../api/errors.ts'
import type { AnswerFacts } from '../api/types.ts'

export interface Piece {
  text?: string
  facts?: AnswerFacts
  finish?: string
  tokens?: number
}

interface Chunk {
  choices?: { delta?: { content?: string | null }; finish_reason?: string | null }[]
  usage?: { completion_tokens?: number } | null
  shoal?: AnswerFacts
  error?: unknown
}

/**
 * One event's data.
 *
 * Throws a GatewayError where the gateway says that the answer failed midway.
 */
export function readChunk(data: string): Piece {
  const chunk = JSON.parse(data) as Chunk
  if (chunk.error !== undefined) {
    const { message, code } = errorOf(chunk)
    throw new GatewayError(message ?? 'The answer failed.', 500, code)
  }
  const piece: Piece = {}
  const choice = chunk.choices?.[0]
  if (choice?.delta?.content) piece.text = choice.delta.content
  if (choice?.finish_reason) piece.finish = choice.finish_reason
  if (chunk.shoal) piece.facts = chunk.shoal
  if (chunk.usage?.completion_tokens !== undefined) piece.tokens = chunk.usage.completion_tokens
  return piece
}
