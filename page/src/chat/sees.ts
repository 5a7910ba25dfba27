/** Which models look at pictures, as the gateway says it. */

import { callJson } from '../api/http.ts'

/** Whether this model does. Throws a GatewayError when the gateway does not say. */
export async function sees(model: string): Promise<boolean> {
  const { capabilities } = await callJson<{ capabilities: string[] }>('api/show', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ model }),
  })
  return capabilities.includes('vision')
}
