/** What the swarm offers, in the order of one column, and sums of money as people read them. Pure. */

import type { MarketSpan, Money } from '../api/types.ts'
import { nameOf } from '../ui/names.ts'
import { ordered, type Value } from '../ui/order.ts'

export type Column = 'name' | 'model' | 'blocks' | 'price' | 'speed' | 'free' | 'attests' | 'audits'

/** Who asks nothing asks the least. */
const VALUES: Record<Column, (span: MarketSpan) => Value> = {
  name: ({ peer }) => nameOf(peer).fish,
  model: ({ model }) => model,
  blocks: ({ start }) => start,
  price: ({ price }) => Number(price || 0),
  speed: ({ tokens_per_s }) => tokens_per_s,
  free: ({ tokens_free }) => tokens_free,
  attests: ({ attests }) => attests || null,
  audits: ({ found_out }) => Number(found_out),
}

export function offers(spans: readonly MarketSpan[], column: Column, down: boolean): MarketSpan[] {
  return ordered(spans, VALUES[column], down)
}

/** Coins with the digits that mean something: `0.0021`, `12.5`, `0`. */
export function coins(value: number): string {
  if (!Number.isFinite(value)) return '–'
  return value === 0 ? '0' : String(Number(value.toPrecision(value >= 1000 ? 6 : 3)))
}

export interface Totals {
  earned: number
  spent: number
  /** Of each hour that is known, from 0 (a month ago) to 1 (now): all that was earned or spent until then. */
  points: { x: number; earned: number; spent: number }[]
}

/** Sums over the last `hours`, hour by hour; an hour of which nothing is known changes nothing. */
export function totals(money: Money, hours: number, now: number): Totals {
  const from = now - hours
  let earned = 0
  let spent = 0
  const points = [{ x: 0, earned: 0, spent: 0 }]
  for (const row of money.hours) {
    if (row.hour <= from || row.hour > now) continue
    earned += Number(row.earned)
    spent += Number(row.spent)
    points.push({ x: (row.hour - from) / hours, earned, spent })
  }
  if (points.at(-1)?.x !== 1) points.push({ x: 1, earned, spent })
  return { earned, spent, points }
}
