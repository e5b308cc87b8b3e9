"""The job as its libraries' README files show it: aio-pika and wechatpayv3."""

import asyncio
import json
import logging
import os
import uuid
from datetime import datetime, timezone
from pathlib import Path

import aio_pika
from wechatpayv3 import WeChatPayType
from wechatpayv3.async_ import AsyncWeChatPay
from wechatpayv3.async_.type import RequestType

env = os.environ


async def main() -> None:
    in_flight = int(env["PEER_IN_FLIGHT"])
    wxpay = AsyncWeChatPay(
        wechatpay_type=WeChatPayType.NATIVE,
        mchid=env["PEER_MCHID"],
        private_key=Path(env["PEER_KEY_FILE"]).read_text(),
        cert_serial_no=env["PEER_SERIAL"],
        appid="wx233544546545989",
        apiv3_key="",
        partner_mode=True,
        timeout=(10, 30),
        public_key=Path(env["PEER_PUBLIC_KEY_FILE"]).read_text(),
        public_key_id=env["PEER_PUBLIC_KEY_ID"],
    )
    # The library has no setting for it.
    wxpay._core._gate_way = env["PEER_BASE_URL"]

    async with wxpay:
        connection = await aio_pika.connect_robust(env["PEER_URI"])
        async with connection:
            commands = await connection.channel()
            await commands.set_qos(prefetch_count=in_flight)
            queue = await commands.get_queue(env["PEER_COMMANDS"])
            confirms = await connection.channel(publisher_confirms=True, on_return_raises=True)
            results = await confirms.get_exchange(env["PEER_RESULTS"])

            async def redeem(message: aio_pika.abc.AbstractIncomingMessage) -> None:
                async with message.process(requeue=True):
                    command = json.loads(message.body)
                    body = dict(command)
                    openid, code = body.pop("openid"), body.pop("coupon_code")
                    path = f"/v3/marketing/partner/product-coupon/users/{openid}/coupons/{code}/use"
                    # The library has no method for product coupons; this is what its methods call, and it verifies.
                    status, text = await wxpay._core.request(path, method=RequestType.POST, data=body)
                    if status != 200:
                        raise RuntimeError(f"status {status}")
                    coupon = json.loads(text)
                    event = {
                        "specversion": "1.0",
                        "id": str(uuid.uuid4()),
                        "source": "/peer",
                        "type": "redemption.redeemed.v1",
                        "subject": code,
                        "time": datetime.now(timezone.utc).isoformat(),
                        "datacontenttype": "application/json",
                        "data": {
                            **command,
                            "outcome": "redeemed",
                            "coupon_state": coupon["coupon_state"],
                            "coupon": coupon,
                        },
                    }
                    reported = aio_pika.Message(
                        json.dumps(event).encode(),
                        content_type="application/cloudevents+json",
                        message_id=event["id"],
                        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    )
                    await results.publish(reported, f"redemption.redeemed.{command['brand_id']}", mandatory=True)

            await queue.consume(redeem)
            await asyncio.Future()


logging.basicConfig(level=logging.WARNING)
asyncio.run(main())
