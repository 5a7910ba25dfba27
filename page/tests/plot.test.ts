import assert from 'node:assert/strict'
import { test } from 'node:test'
import { above, line, runs, withOthers } from '../src/ui/plot.ts'

test('axes end at round numbers that no value exceeds', () => {
  assert.deepEqual([0, NaN, 0.03, 1, 1.2, 3, 7, 100, 240].map(above), [1, 1, 0.05, 1, 2, 5, 10, 100, 500])
})

test('a time of which nothing is known is no line', () => {
  const points = [0, 0.1, 0.2, 0.6, 0.7].map((x) => ({ x, y: 0.5 }))
  assert.deepEqual(runs(points, 0.15).map((run) => run.map(({ x }) => x)), [[0, 0.1, 0.2], [0.6, 0.7]])
  assert.deepEqual(runs([], 1), [])
})

test('a line goes from the left to the right and up, and a lone point is seen too', () => {
  assert.equal(line([{ x: 0, y: 0 }, { x: 1, y: 1 }], 480, 72), 'M0.0 72.0L480.0 0.0')
  assert.equal(line([{ x: 0.5, y: 0.5 }], 480, 72), 'M240.0 36.0h2')
})

test('whoever used less than the first is counted among the others, and nothing is lost', () => {
  const rows = [[5, 1], [2, 2], [1, 0], [0, 1]].map((tokens) => ({ tokens }))
  assert.deepEqual(withOthers(rows, 2), { shown: rows.slice(0, 2), others: [1, 1] })
  assert.deepEqual(withOthers(rows, 4), { shown: rows, others: null })
})
