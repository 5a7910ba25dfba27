# pragma version ==0.4.3
# pragma evm-version cancun
"""
@title What takes a payer's tokens by its ERC-3009 authorization and hands them to the settlement contract.
@dev For tests alone, as Settlement.vy. The authorization's nonce binds it to one payment channel.
"""

interface Token:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def receiveWithAuthorization(owner: address, to: address, amount: uint256, valid_after: uint256, valid_before: uint256, nonce: bytes32, signature: Bytes[65]): nonpayable

SETTLEMENT: constant(address) = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003


@external
def collect(payer: address, token: address, amount: uint256, channel_id: bytes32, data: Bytes[1024]):
    assert msg.sender == SETTLEMENT, "OnlySettlement"
    valid_after: uint256 = 0
    valid_before: uint256 = 0
    salt: uint256 = 0
    signature: Bytes[65] = b""
    valid_after, valid_before, salt, signature = abi_decode(data, (uint256, uint256, uint256, Bytes[65]))
    nonce: bytes32 = keccak256(abi_encode(channel_id, salt))
    extcall Token(token).receiveWithAuthorization(payer, self, amount, valid_after, valid_before, nonce, signature)
    assert extcall Token(token).transfer(SETTLEMENT, amount)
