/** The time, for what says "3 s ago". */
class Clock {
  ms = $state(Date.now())

  constructor() {
    setInterval(() => (this.ms = Date.now()), 1000)
  }
}

export const clock = new Clock()
