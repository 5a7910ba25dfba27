// A js-libp2p peer with Noise, yamux and kad-dht, as any other program on the network might be.
//
//   node peer.mjs '{"target": "/ip4/.../p2p/...", "digest": "<hex>", "swarmKey": "<hex>", "security": "noise"}'
//
// It dials the target, pings it, and asks the DHT who provides the digest. With "provide": true it says instead
// that it provides the digest itself, and serves until its input ends. It prints one JSON object: its own `id`,
// `ping` in milliseconds and `providers` ({id, addresses}), or `error`.

import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { plaintext } from '@libp2p/plaintext'
import { preSharedKey } from '@libp2p/pnet'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import * as digest from 'multiformats/hashes/digest'
import { sha256 } from 'multiformats/hashes/sha2'

const DEADLINE_MS = 15000

const asked = JSON.parse(process.argv[2])

const swarmKey = (hex) => new TextEncoder().encode(`/key/swarm/psk/1.0.0/\n/base16/\n${hex}\n`)

const node = await createLibp2p({
  addresses: { listen: asked.provide ? ['/ip4/127.0.0.1/tcp/0'] : [] },
  transports: [tcp()],
  connectionEncrypters: [asked.security === 'plaintext' ? plaintext() : noise()],
  streamMuxers: [yamux()],
  connectionProtector: asked.swarmKey ? preSharedKey({ psk: swarmKey(asked.swarmKey) }) : undefined,
  services: {
    identify: identify(),
    ping: ping(),
    // On a network of this machine: addresses of every range are kept.
    dht: kadDHT({
      protocol: '/ipfs/kad/1.0.0',
      clientMode: !asked.provide,
      allowQueryWithZeroPeers: true,
      peerInfoMapper: passthroughMapper
    })
  }
})

const said = { id: node.peerId.toString() }
try {
  const target = multiaddr(asked.target)
  const signal = AbortSignal.timeout(DEADLINE_MS)
  await node.dial(target, { signal })
  if (asked.digest) {
    // The target becomes known to the DHT once identify has told which protocols it speaks, and a ping came.
    while (node.services.dht.routingTable.size === 0) {
      signal.throwIfAborted()
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    const cid = CID.createV1(raw.code, digest.create(sha256.code, Buffer.from(asked.digest, 'hex')))
    if (asked.provide) await node.contentRouting.provide(cid, { signal })
    said.providers = []
    for await (const provider of node.contentRouting.findProviders(cid, { signal })) {
      said.providers.push({ id: provider.id.toString(), addresses: provider.multiaddrs.map(String) })
      break
    }
  }
  // Last: the DHT pings a peer before it takes it, and js-libp2p allows one ping of a peer at a time.
  said.ping = await node.services.ping.ping(target, { signal })
} catch (error) {
  said.error = `${error.name}: ${error.message}`
}
console.log(JSON.stringify(said))
if (asked.provide && !said.error) await new Promise((resolve) => process.stdin.on('end', resolve).resume())
await node.stop()
process.exit(0)
