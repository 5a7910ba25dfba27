import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { MarketSpan } from '../src/api/types.ts'
import { coins, offers, totals } from '../src/market/market.ts'

const offer = (peer: string, price: string, more: Partial<MarketSpan> = {}): MarketSpan =>
  ({ peer, price, start: 0, end: 1, model: 'm', format: 'int8', tokens_per_s: 1, tokens_free: 1, share: 1, attests: '', found_out: false, ...more })

test('prices go by what they are worth, and who asks nothing asks the least', () => {
  const rows = [offer('a', '0.01'), offer('b', ''), offer('c', '0.002')]
  assert.deepEqual(offers(rows, 'price', false).map(({ peer }) => peer), ['b', 'c', 'a'])
  assert.deepEqual(offers(rows, 'price', true).map(({ peer }) => peer), ['a', 'c', 'b'])
})

test('what is not known comes last, whichever way', () => {
  const rows = [offer('a', '', { tokens_per_s: null }), offer('b', '', { tokens_per_s: 2 }), offer('c', '', { tokens_per_s: 5 })]
  assert.deepEqual(offers(rows, 'speed', false).map(({ peer }) => peer), ['b', 'c', 'a'])
  assert.deepEqual(offers(rows, 'speed', true).map(({ peer }) => peer), ['c', 'b', 'a'])
})

test('sums have the digits that mean something', () => {
  assert.deepEqual([0, 0.00212345, 12.3456, 12345.6, NaN].map(coins), ['0', '0.00212', '12.3', '12345.6', '–'])
})

test('money adds up from a month ago to now, and hours out of it count for nothing', () => {
  const hours = [{ hour: 899, earned: '9', spent: '9' }, { hour: 950, earned: '0.5', spent: '0' }, { hour: 990, earned: '0.25', spent: '2' }]
  const { earned, spent, points } = totals({ hours }, 100, 1000)
  assert.deepEqual([earned, spent], [0.75, 2])
  assert.deepEqual(points, [{ x: 0, earned: 0, spent: 0 }, { x: 0.5, earned: 0.5, spent: 0 }, { x: 0.9, earned: 0.75, spent: 2 }, { x: 1, earned: 0.75, spent: 2 }])
  assert.deepEqual(totals({ hours: [] }, 100, 1000).points.map(({ x }) => x), [0, 1])
})
