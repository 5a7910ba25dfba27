/** The API key, where the gateway asks for one. Kept for this tab alone. */

const STORED = 'shoal.key'

class Key {
  value = $state(sessionStorage.getItem(STORED) ?? '')
  /** The gateway wants a key, or another one than this. */
  asked = $state(false)
  /** The key that was tried last was refused. */
  wrong = $state(false)

  refused(): void {
    this.wrong = this.value !== ''
    this.asked = true
  }

  use(value: string): void {
    this.value = value.trim()
    sessionStorage.setItem(STORED, this.value)
    this.asked = false
    this.wrong = false
  }
}

export const key = new Key()
