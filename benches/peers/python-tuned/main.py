"""The job written for speed, without a payment library: aiormq, aiohttp, cryptography and orjson on uvloop. The reply
is verified and read once, and its bytes go into the event as they came."""

import asyncio
import os
import sys
import time
import uuid
from base64 import b64decode, b64encode
from datetime import datetime, timezone
from pathlib import Path

import aiohttp
import aiormq
import orjson
import uvloop
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

env = os.environ
MCHID, SERIAL, BASE_URL = env["PEER_MCHID"], env["PEER_SERIAL"], env["PEER_BASE_URL"]
PUBLIC_KEY_ID, RESULTS = env["PEER_PUBLIC_KEY_ID"], env["PEER_RESULTS"]
PADDING, DIGEST = PKCS1v15(), SHA256()


async def main() -> None:
    in_flight = int(env["PEER_IN_FLIGHT"])
    private_key = load_pem_private_key(Path(env["PEER_KEY_FILE"]).read_bytes(), None)
    public_key = load_pem_public_key(Path(env["PEER_PUBLIC_KEY_FILE"]).read_bytes())
    http = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=in_flight, keepalive_timeout=7),
        headers={
            "accept": "application/json",
            "content-type": "application/json",
            "user-agent": "peer",
            "wechatpay-serial": PUBLIC_KEY_ID,
        },
    )
    connection = await aiormq.connect(env["PEER_URI"])
    commands = await connection.channel()
    await commands.basic_qos(prefetch_count=in_flight)
    results = await connection.channel(publisher_confirms=True, on_return_raises=True)

    def authorization(target: str, body: bytes) -> str:
        timestamp, nonce = int(time.time()), os.urandom(16).hex()
        text = b"POST\n%b\n%d\n%b\n%b\n" % (target.encode(), timestamp, nonce.encode(), body)
        signature = b64encode(private_key.sign(text, PADDING, DIGEST)).decode()
        return (
            f'WECHATPAY2-SHA256-RSA2048 mchid="{MCHID}",nonce_str="{nonce}",signature="{signature}",'
            f'timestamp="{timestamp}",serial_no="{SERIAL}"'
        )

    def verify(headers, body: bytes) -> None:
        timestamp = headers["wechatpay-timestamp"]
        if headers["wechatpay-serial"] != PUBLIC_KEY_ID or abs(time.time() - int(timestamp)) >= 300:
            raise RuntimeError("not signed by whom it should be, or not now")
        text = b"%b\n%b\n%b\n" % (timestamp.encode(), headers["wechatpay-nonce"].encode(), body)
        public_key.verify(b64decode(headers["wechatpay-signature"]), text, PADDING, DIGEST)

    async def redeem(message) -> None:
        try:
            command = orjson.loads(message.body)
            fields = dict(command)
            openid, code = fields.pop("openid"), fields.pop("coupon_code")
            target = f"/v3/marketing/partner/product-coupon/users/{openid}/coupons/{code}/use"
            sent = orjson.dumps(fields)
            headers = {"authorization": authorization(target, sent)}
            async with http.post(BASE_URL + target, data=sent, headers=headers) as reply:
                body = await reply.read()
                if reply.status != 200:
                    raise RuntimeError(f"status {reply.status}")
                verify(reply.headers, body)
            coupon = orjson.loads(body)
            name = str(uuid.uuid4())
            event = {
                "specversion": "1.0",
                "id": name,
                "source": "/peer",
                "type": "redemption.redeemed.v1",
                "subject": code,
                "time": datetime.now(timezone.utc),
                "datacontenttype": "application/json",
                "data": {
                    **command,
                    "outcome": "redeemed",
                    "coupon_state": coupon["coupon_state"],
                    "coupon": orjson.Fragment(body),
                },
            }
            await results.basic_publish(
                orjson.dumps(event),
                exchange=RESULTS,
                routing_key=f"redemption.redeemed.{command['brand_id']}",
                properties=aiormq.spec.Basic.Properties(
                    content_type="application/cloudevents+json", message_id=name, delivery_mode=2
                ),
                mandatory=True,
            )
            await commands.basic_ack(message.delivery_tag, wait=False)
        except Exception as error:
            print(repr(error), file=sys.stderr)
            await commands.basic_nack(message.delivery_tag, requeue=True, wait=False)

    await commands.basic_consume(env["PEER_COMMANDS"], redeem)
    await asyncio.Future()


uvloop.run(main())
