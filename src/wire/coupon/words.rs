//! The words of the enumerations. Every list is open: the provider adds words at any time.
//!
//! Their Chinese is the provider's (pay.weixin.qq.com/doc/v3/partner/4016435636, and the revision of 2025-09 for words
//! that are gone from it). What the English says beyond it is an addition after a `+`.

use super::{Revision, Word};

macro_rules! words {
    (@note) => { "" };
    (@note $note:literal) => { $note };
    ($($list:ident: $($word:literal $revision:ident $english:literal $chinese:literal $(+ $note:literal)?)*;)*) => {$(
        pub(super) const $list: &[Word] = &[$(Word {
            word: $word,
            revision: Revision::$revision,
            english: $english,
            chinese: $chinese,
            chinese_note: words!(@note $($note)?),
        }),*];
    )*};
}

words! {
    COUPON_STATES:
        "CONFIRMING" Both "sent; the brand must confirm it" "待确认" + "须由品牌方确认后才生效"
        "PENDING" Both "confirmed; its time has not come" "已发放待生效" + "尚未到可用时间"
        "EFFECTIVE" Both "usable now" "已生效" + "现在可用"
        "USED" Both "used; a return makes it usable again" "已核销" + "退券后可再次使用"
        "EXPIRED" Both "its time is over" "已过期"
        "DELETED" Both "deleted by the user" "已删除" + "由用户删除"
        "DEACTIVATED" Both "withdrawn by the brand" "已失效" + "由品牌方使其失效";
    DETAIL_STATES:
        "PENDING" Old "its turn or its time has not come" "待生效" + "尚未轮到，或尚未到可用时间"
        "EFFECTIVE" Old "usable now" "已生效" + "现在可用"
        "USED" Old "used; a return makes it usable again" "已核销" + "退券后可再次使用"
        "EXPIRED" Old "its time is over" "已过期"
        "DELETED" Old "deleted by the user" "已删除" + "由用户删除"
        "DEACTIVATED" Old "withdrawn by the brand" "已失效" + "由品牌方使其失效";
    SEND_CHANNELS:
        "API" Both "sent by the partner through the API" "服务商自主发券"
        "BRAND_MANAGE" Both "a shake-for-offers campaign" "摇一摇有优惠"
        "MERCHANT_CARD" Old "an offer on the merchant's card" "名片优惠" + "商家名片上的优惠"
        "MEMBER" Old "an offer for members" "会员优惠"
        "SMALL_ACTIVITY" Old "a small campaign" "小活动"
        "RECEIVE_COMPONENT" New "received in a mini program" "小程序领券组件";
    PRODUCT_STATES:
        "AUDITING" Both "under review" "审批中"
        "EFFECTIVE" Both "usable" "生效中"
        "DEACTIVATED" Both "withdrawn by the brand" "已失效" + "由品牌方使其失效";
    SCOPES:
        "ALL" Both "all goods" "全场商品可用券"
        "SINGLE" Both "the goods in `combo_package_list`" "部分商品可用券" + "即 `combo_package_list` 中的商品"
        "CATEGORY" New "a category of goods, which the brand checks itself" "品类券" + "具体商品由品牌方自行判定";
    TYPES:
        "NORMAL" Both "an amount off" "满减券" + "减固定金额"
        "DISCOUNT" Both "a percentage off" "折扣券" + "按百分比减免"
        "EXCHANGE" Both "goods at a fixed price" "兑换券" + "按固定价格兑换商品";
    USAGE_MODES:
        "SINGLE" Both "used once: see `single_usage_detail`" "单券" + "只能用一次，见 `single_usage_detail`"
        "SEQUENTIAL" Old "several rounds under one code: see `sequential_usage_detail`" "多次优惠" + "旧版：同一个券Code分多轮使用，见 `sequential_usage_detail`"
        "PROGRESSIVE_BUNDLE" New "one of a bundle: see `progressive_bundle_usage_detail`" "多次优惠" + "券组中的一张，见 `progressive_bundle_usage_detail`";
    SEQUENTIAL_TYPES:
        "INCREMENTAL" Old "the offer grows from round to round" "递增优惠" + "优惠逐轮递增"
        "EQUAL" Old "each round has the same offer" "等额优惠" + "每轮优惠相同";
    CODE_MODES:
        "WECHATPAY" Both "made by WeChat Pay" "微信支付随机生成"
        "UPLOAD" Both "taken from those that the brand uploaded" "品牌方预上传Code" + "从中选取"
        "API_ASSIGN" Both "given by the brand with each coupon" "品牌方自行指定" + "发券时逐张指定";
    DAYS:
        "MONDAY" Both "Monday" "周一"
        "TUESDAY" Both "Tuesday" "周二"
        "WEDNESDAY" Both "Wednesday" "周三"
        "THURSDAY" Both "Thursday" "周四"
        "FRIDAY" Both "Friday" "周五"
        "SATURDAY" Both "Saturday" "周六"
        "SUNDAY" Both "Sunday" "周日";
    USAGE_METHODS:
        "OFFLINE" Both "at the till: the code is scanned" "线下滴码核销" + "在收银台扫码"
        "MINI_PROGRAM" Both "in a mini program" "线上小程序核销"
        "APP" Both "in the brand's app" "APP核销"
        "PAYMENT_CODE" Both "with the payment code of the wallet" "微信支付付款码核销";
    APP_JUMPS:
        "H5" New "jumps to a page" "跳转H5"
        "PASSCODE_LINK" New "shows a pass code to copy" "口令链接" + "展示口令供用户复制"
        "USAGE_GUIDE" New "shows how it is used" "展示使用指引";
    CODE_DISPLAYS:
        "INVISIBLE" Both "not at all" "不展示Code"
        "BARCODE" Both "as a bar code" "条形码"
        "QRCODE" Both "as a QR code" "二维码";
    COLORS:
        "Color010" Both "the first of the provider's chart" "第1种" + "按颜色图中的次序"
        "Color020" Both "the second" "第2种"
        "Color030" Both "the third" "第3种"
        "Color040" Both "the fourth" "第4种"
        "Color050" Both "the fifth" "第5种"
        "Color060" Both "the sixth" "第6种"
        "Color070" Both "the seventh" "第7种"
        "Color080" Both "the eighth" "第8种"
        "Color090" Both "the ninth" "第9种"
        "Color100" Both "the tenth" "第10种";
    STORE_SCOPES:
        "NONE" Both "no stores are named" "无关联门店"
        "ALL" Both "every store of the brand" "所有门店可用"
        "SPECIFIC" Both "the stores that the brand has linked" "特定门店可用" + "即品牌方关联的门店";
    STOCK_STATES:
        "AUDITING" Both "under review" "审批中"
        "SENDING" Both "coupons are sent" "发放中"
        "PAUSED" Both "no coupons are sent for now" "已暂停" + "暂时不发券"
        "STOPPED" Both "its end has come" "已停止" + "已到结束时间"
        "DEACTIVATED" Both "withdrawn by the brand" "已失效" + "由品牌方使其失效";
    TAGS:
        "MEMBER" New "a coupon for members" "会员标签";
}
