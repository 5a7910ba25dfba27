/**
 * Where the peers of the graph lie: a small force layout. Pure, and the same for the same input.
 *
 * Ties pull towards their length, bodies push each other away, and the first body stays in the middle.
 * Every body against every other, so for the few hundred that a person can look at.
 */

export interface Point {
  x: number
  y: number
}

export interface Tie {
  a: string
  b: string
  /** What it would like to be, in pixels. */
  length: number
}

const REPULSION = 26_000
const STIFFNESS = 0.06
/** Of a tie between two others: how far out a peer lies tells its round trip from the middle. */
const SIDE_STIFFNESS = 0.012
/** Stronger upright: screens are wide. */
const GRAVITY = { x: 0.004, y: 0.012 }
const LONGEST_MOVE = 30
const STEPS = 260
/** The golden angle: newcomers are spread evenly without chance. */
const TURN = Math.PI * (3 - Math.sqrt(5))

/** Pixels for a round trip: each doubling is a step further out. */
export function lengthOf(rttMs: number | null): number {
  if (rttMs === null) return 210
  return Math.min(320, 135 + 24 * Math.log2(1 + Math.max(0, rttMs)))
}

/** Places for `ids`, near to where they were `before`, around (0, 0) where `ids[0]` lies. */
export function settle(ids: string[], ties: Tie[], before: ReadonlyMap<string, Point>): Map<string, Point> {
  const points = ids.map((id, i) => start(i, before.get(id)))
  const index = new Map(ids.map((id, i) => [id, i]))
  const pulls = ties.flatMap(({ a, b, length }) => {
    const [from, to] = [index.get(a), index.get(b)]
    return from === undefined || to === undefined || from === to ? [] : [{ from, to, length }]
  })
  for (let step = 0; step < STEPS; step++) move(points, pulls, 1 - step / STEPS)
  return new Map(ids.map((id, i) => [id, points[i] as Point]))
}

function start(i: number, before: Point | undefined): Point {
  if (i === 0) return { x: 0, y: 0 }
  return before ? { ...before } : { x: 150 * Math.cos(i * TURN), y: 150 * Math.sin(i * TURN) }
}

function move(points: Point[], pulls: { from: number; to: number; length: number }[], heat: number): void {
  const forces = points.map(({ x, y }) => ({ x: -x * GRAVITY.x, y: -y * GRAVITY.y }))
  for (let i = 0; i < points.length; i++) {
    for (let j = i + 1; j < points.length; j++) {
      const { dx, dy, distance } = between(points, i, j)
      push(forces, i, j, dx, dy, -REPULSION / (distance * distance))
    }
  }
  for (const { from, to, length } of pulls) {
    const { dx, dy, distance } = between(points, from, to)
    push(forces, from, to, dx, dy, (distance - length) * (from === 0 || to === 0 ? STIFFNESS : SIDE_STIFFNESS))
  }
  for (let i = 1; i < points.length; i++) {
    const [point, force] = [points[i] as Point, forces[i] as Point]
    const size = Math.hypot(force.x, force.y)
    const scale = size > 0 ? (Math.min(size, LONGEST_MOVE) / size) * heat : 0
    point.x += force.x * scale
    point.y += force.y * scale
  }
}

/** Direction from `i` to `j`, of length one, and how far; two at one place get a direction of their own. */
function between(points: Point[], i: number, j: number): { dx: number; dy: number; distance: number } {
  const [a, b] = [points[i] as Point, points[j] as Point]
  const [x, y] = [b.x - a.x, b.y - a.y]
  const distance = Math.hypot(x, y)
  if (distance < 0.01) return { dx: Math.cos(j * TURN), dy: Math.sin(j * TURN), distance: 1 }
  return { dx: x / distance, dy: y / distance, distance: Math.max(distance, 8) }
}

function push(forces: Point[], i: number, j: number, dx: number, dy: number, force: number): void {
  const [a, b] = [forces[i] as Point, forces[j] as Point]
  a.x += dx * force
  a.y += dy * force
  b.x -= dx * force
  b.y -= dy * force
}

/** The part of the plane that shows every point, with room for a node and its name; few are not blown up. */
export function frame(points: Iterable<Point>, aspect: number): { x: number; y: number; width: number; height: number } {
  let [left, right, top, bottom] = [-250, 250, -150, 150]
  for (const { x, y } of points) {
    left = Math.min(left, x - 80)
    right = Math.max(right, x + 80)
    top = Math.min(top, y - 50)
    bottom = Math.max(bottom, y + 78)
  }
  let [width, height] = [right - left, bottom - top]
  if (width / height < aspect) {
    left -= (height * aspect - width) / 2
    width = height * aspect
  } else {
    top -= (width / aspect - height) / 2
    height = width / aspect
  }
  return { x: left, y: top, width, height }
}

/** A point on the way through `stops`, `t` from 0 to 1, each leg as long as every other. */
export function along(stops: Point[], t: number): Point {
  const legs = stops.length - 1
  const at = Math.min(Math.max(t, 0), 1) * legs
  const leg = Math.min(Math.floor(at), legs - 1)
  const [from, to] = [stops[leg] as Point, stops[leg + 1] as Point]
  return { x: from.x + (to.x - from.x) * (at - leg), y: from.y + (to.y - from.y) * (at - leg) }
}
