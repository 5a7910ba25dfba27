/** What a badge says of how well an answer is protected from peers that compute something else. Pure. */

import type { Protection } from '../api/types.ts'
import { many } from './format.ts'

export interface Badge {
  word: string
  tone: 'good' | 'bad' | 'soft'
  /** What was checked, and by whom. */
  lines: string[]
}

/** Nothing of an answer that nobody was to check. */
export function badge(protection: Protection | null | undefined): Badge | null {
  if (!protection) return null
  const { asked, level, signed_by, audits, faults, attested, replicas } = protection
  if (attested?.length) {
    const shown = [...new Set(attested.map(({ shown }) => shown)), ...faults]
    return { word: level, tone: faults.length ? 'soft' : 'good', lines: shown }
  }
  if (asked === 'fast') return null
  const signed = `Signed by ${many(signed_by.length, 'peer')}`
  const copies = asked === 'consensus' ? [`Computed by ${many(replicas?.length ?? 1, 'replica')}`] : []
  const lines = [signed, ...copies, ...audits.map(({ what }) => what), ...faults]
  if (asked === 'proved') lines.push('Proofs are sound, not zero-knowledge, and of linear layers only')
  if (!audits.length && level === 'audited' && level === asked) lines.push('None of them was drawn to be computed again this time')
  if (audits.some(({ verdict, replica }) => verdict === 'cheat' && !replica)) return { word: 'false', tone: 'bad', lines }
  return level === asked ? { word: level, tone: 'good', lines } : { word: `not ${asked}`, tone: 'soft', lines }
}

/** For what was kept or came in a file, which may hold anything. */
export function isProtection(value: unknown): value is Protection {
  const { asked, level, signed_by, audits, faults, attested } = (value ?? {}) as Record<string, unknown>
  const words = (list: unknown): boolean => Array.isArray(list) && list.every((one) => typeof one === 'string')
  return (
    typeof asked === 'string' &&
    typeof level === 'string' &&
    words(signed_by) &&
    words(faults) &&
    Array.isArray(audits) &&
    words(audits.flatMap((one) => [one?.what, one?.verdict])) &&
    (attested === undefined || (Array.isArray(attested) && words(attested.map((one) => one?.shown))))
  )
}
