# pragma version ==0.4.3
# pragma evm-version cancun
"""
@title A token of tests, which moves by ERC-3009 authorizations too. Whoever asks is given some.
"""

DOMAIN_TYPE: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
RECEIVE_TYPE: constant(bytes32) = keccak256("ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)")
HALF_ORDER: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168

balanceOf: public(HashMap[address, uint256])
authorizationState: public(HashMap[address, HashMap[bytes32, bool]])


@view
@external
def name() -> String[16]:
    return "Test Coin"


@view
@external
def version() -> String[4]:
    return "2"


@view
@external
def decimals() -> uint8:
    return 6


@external
def mint(to: address, amount: uint256):
    self.balanceOf[to] += amount


@external
def transfer(to: address, amount: uint256) -> bool:
    self.balanceOf[msg.sender] -= amount
    self.balanceOf[to] += amount
    return True


@external
def receiveWithAuthorization(owner: address, to: address, amount: uint256, valid_after: uint256, valid_before: uint256, nonce: bytes32, signature: Bytes[65]):
    assert msg.sender == to, "caller must be the payee"
    assert block.timestamp > valid_after and block.timestamp < valid_before, "authorization is not valid now"
    assert not self.authorizationState[owner][nonce], "authorization is used"
    domain: bytes32 = keccak256(abi_encode(DOMAIN_TYPE, keccak256("Test Coin"), keccak256("2"), chain.id, self))
    fields: bytes32 = keccak256(abi_encode(RECEIVE_TYPE, owner, to, amount, valid_after, valid_before, nonce))
    r: uint256 = convert(slice(signature, 0, 32), uint256)
    s: uint256 = convert(slice(signature, 32, 32), uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    signer: address = ecrecover(keccak256(concat(b"\x19\x01", domain, fields)), v, r, s)
    assert s <= HALF_ORDER and signer != empty(address) and signer == owner, "invalid signature"
    self.authorizationState[owner][nonce] = True
    self.balanceOf[owner] -= amount
    self.balanceOf[to] += amount
