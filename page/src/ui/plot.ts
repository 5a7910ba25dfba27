/** Where values of a plot stand, from 0 to 1 both ways. Pure. */

export interface Point {
  x: number
  y: number
}

/** The least of 1, 2 and 5 times a power of ten that is not below `most`; 1 where all is 0. */
export function above(most: number): number {
  if (!(most > 0)) return 1
  const power = 10 ** Math.floor(Math.log10(most))
  return [1, 2, 5, 10].map((times) => times * power).find((top) => top >= most * (1 - 1e-9)) ?? 10 * power
}

/** Runs of points between which nothing is missing: a step of more than `gap` begins another. */
export function runs(points: readonly Point[], gap: number): Point[][] {
  const found: Point[][] = []
  let last: Point | null = null
  for (const point of points) {
    if (last && point.x - last.x <= gap) found.at(-1)?.push(point)
    else found.push([point])
    last = point
  }
  return found
}

/** The line through a run as an SVG path in a box of `width` by `height`; a lone point is a short dash. */
export function line(run: readonly Point[], width: number, height: number): string {
  const at = ({ x, y }: Point) => `${(x * width).toFixed(1)} ${((1 - y) * height).toFixed(1)}`
  const [first] = run
  if (first && run.length === 1) return `M${at(first)}h2`
  return run.map((point, index) => `${index ? 'L' : 'M'}${at(point)}`).join('')
}

/** The first `most` and the sum of all others, place by place; as given where there are no more. */
export function withOthers<T extends { tokens: number[] }>(rows: readonly T[], most: number): { shown: T[]; others: number[] | null } {
  if (rows.length <= most) return { shown: [...rows], others: null }
  const rest = rows.slice(most)
  const others = (rest[0]?.tokens ?? []).map((_, day) => rest.reduce((sum, { tokens }) => sum + (tokens[day] ?? 0), 0))
  return { shown: rows.slice(0, most), others }
}
