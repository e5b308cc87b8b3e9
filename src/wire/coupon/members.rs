//! The table of members: one entry each, in the order of the provider's document.
//!
//! The Chinese of a member of the 2025-09 revision is the wording of that document, word for word; that of a newer
//! member is the provider's current page (pay.weixin.qq.com/doc/v3/partner/4016435636). What the English says beyond
//! that wording is an addition of its own, after a `+`.

use super::words::*;
use super::{Kind, Member, Revision, When};

macro_rules! members {
    (@words) => { &[] };
    (@words $words:ident) => { $words };
    (@note) => { "" };
    (@note $note:literal) => { $note };
    ($($path:literal $kind:ident $when:ident $revision:ident $([$words:ident])?
        $english:literal $chinese:literal $(+ $note:literal)?;)*) => {
        /// Every documented member of a user's coupon. A member of an element of a list has `[]` in its path.
        pub const MEMBERS: &[Member] = &[$(Member {
            path: $path,
            kind: Kind::$kind,
            when: When::$when,
            revision: Revision::$revision,
            english: $english,
            chinese: $chinese,
            chinese_note: members!(@note $($note)?),
            words: members!(@words $($words)?),
        }),*];
    };
}

members! {
    "coupon_code" Text Always Both
        "The code of the user's coupon." "用户商品券Code";
    "coupon_state" Text Always Both [COUPON_STATES]
        "The state of the user's coupon." "用户商品券状态";
    "valid_begin_time" Time Always Both
        "From when it can be used." "有效期开始时间";
    "valid_end_time" Time Always Both
        "Until when it can be used." "有效期结束时间";
    "receive_time" Time Always Both
        "When the user received it." "领券时间";
    "send_request_no" Text Always Both
        "The request number under which it was sent." "发券请求单号";
    "send_channel" Text Always Both [SEND_CHANNELS]
        "The way by which it was sent." "发券渠道";
    "confirm_request_no" Text Confirmed Both
        "The request number of the confirmation." "确认请求单号";
    "confirm_time" Time Confirmed Both
        "When it was confirmed." "确认发放时间";
    "deactivate_request_no" Text CouponDeactivated Both
        "The request number under which the coupon was withdrawn." "失效请求单号" + "品牌方使该券失效时的请求单号";
    "deactivate_time" Time CouponDeactivated Both
        "When the coupon was withdrawn." "失效时间" + "品牌方使该券失效的时间";
    "deactivate_reason" Text CouponDeactivated Both
        "Why the coupon was withdrawn, in the words of the brand." "失效原因" + "由品牌方填写";
    "single_usage_detail" Object Single Both
        "The usage of a coupon that is used once; `{}` if it was never used." "单券使用详情" + "从未核销过则为 `{}`";
    "single_usage_detail.use_request_no" Text Used Both
        "The request number of the use: `out_request_no` of the command that used the coupon, ours or another." "券核销请求单号" + "即核销该券的那条指令的 `out_request_no`，可能是我们的，也可能是别人的";
    "single_usage_detail.use_time" Time Used Both
        "When it was used: `use_time` of that command." "核销时间" + "即那条指令的 `use_time`";
    "single_usage_detail.associated_order_info" Object UsedForOrder Both
        "The WeChat Pay order that the use named." "关联微信支付订单信息" + "即核销时填写的订单";
    "single_usage_detail.associated_order_info.transaction_id" Text Named Both
        "WeChat Pay's number of the order." "微信支付单号";
    "single_usage_detail.associated_order_info.out_trade_no" Text Named Both
        "The merchant's number of the order." "商户订单号";
    "single_usage_detail.associated_order_info.mchid" Text Named Both
        "The merchant that took the order; goes with `out_trade_no`." "商户号" + "即下单商户，与 `out_trade_no` 一同出现";
    "single_usage_detail.associated_order_info.sub_mchid" Text Named Both
        "The sub-merchant that took the order; goes with `out_trade_no`." "子商户号" + "即下单子商户，与 `out_trade_no` 一同出现";
    "single_usage_detail.associated_pay_score_order_info" Object UsedForPayScore New
        "The pay-score service order that the use named." "券核销的关联微信支付分订单信息" + "即核销时填写的支付分订单";
    "single_usage_detail.associated_pay_score_order_info.order_id" Text Named New
        "WeChat Pay's number of the service order." "微信支付服务订单号";
    "single_usage_detail.associated_pay_score_order_info.out_order_no" Text Named New
        "The merchant's number of the service order." "商户服务订单号";
    "single_usage_detail.associated_pay_score_order_info.mchid" Text Named New
        "The merchant that took the order; goes with `out_order_no`." "商户号" + "即下单商户，与 `out_order_no` 一同出现";
    "single_usage_detail.associated_pay_score_order_info.sub_mchid" Text Named New
        "The sub-merchant that took the order; goes with `out_order_no`." "子商户号" + "即下单子商户，与 `out_order_no` 一同出现";
    "single_usage_detail.return_request_no" Text Returned Both
        "The request number of the last return." "退券请求单号" + "最近一次退券的请求单号";
    "single_usage_detail.return_time" Time Returned Both
        "When that return was." "退券时间" + "最近一次退券的时间";
    "single_usage_detail.saved_amount" Fen Given New
        "The amount that the user saved by this use; for a discount on all goods or on a category, the amount that the use named." "优惠金额" + "本次核销实际为用户优惠的金额；全场或品类折扣券则是核销时填写的金额";
    "progressive_bundle_usage_detail" Object Bundle New
        "The usage of this coupon of a bundle; `{}` if it was never used." "多次优惠使用详情" + "券组中这一张券的使用详情；从未核销过则为 `{}`";
    "progressive_bundle_usage_detail.use_request_no" Text Used New
        "The request number of the use: `out_request_no` of the command that used the coupon, ours or another." "券核销请求单号" + "即核销该券的那条指令的 `out_request_no`，可能是我们的，也可能是别人的";
    "progressive_bundle_usage_detail.use_time" Time Used New
        "When it was used: `use_time` of that command." "券核销时间" + "即那条指令的 `use_time`";
    "progressive_bundle_usage_detail.associated_order_info" Object UsedForOrder New
        "The WeChat Pay order that the use named." "券核销的微信支付订单信息" + "即核销时填写的订单";
    "progressive_bundle_usage_detail.associated_order_info.transaction_id" Text Named New
        "WeChat Pay's number of the order." "微信支付单号";
    "progressive_bundle_usage_detail.associated_order_info.out_trade_no" Text Named New
        "The merchant's number of the order." "商户订单号";
    "progressive_bundle_usage_detail.associated_order_info.mchid" Text Named New
        "The merchant that took the order; goes with `out_trade_no`." "商户号" + "即下单商户，与 `out_trade_no` 一同出现";
    "progressive_bundle_usage_detail.associated_order_info.sub_mchid" Text Named New
        "The sub-merchant that took the order; goes with `out_trade_no`." "子商户号" + "即下单子商户，与 `out_trade_no` 一同出现";
    "progressive_bundle_usage_detail.associated_pay_score_order_info" Object UsedForPayScore New
        "The pay-score service order that the use named." "券核销的关联微信支付分订单信息" + "即核销时填写的支付分订单";
    "progressive_bundle_usage_detail.associated_pay_score_order_info.order_id" Text Named New
        "WeChat Pay's number of the service order." "微信支付服务订单号";
    "progressive_bundle_usage_detail.associated_pay_score_order_info.out_order_no" Text Named New
        "The merchant's number of the service order." "商户服务订单号";
    "progressive_bundle_usage_detail.associated_pay_score_order_info.mchid" Text Named New
        "The merchant that took the order; goes with `out_order_no`." "商户号" + "即下单商户，与 `out_order_no` 一同出现";
    "progressive_bundle_usage_detail.associated_pay_score_order_info.sub_mchid" Text Named New
        "The sub-merchant that took the order; goes with `out_order_no`." "子商户号" + "即下单子商户，与 `out_order_no` 一同出现";
    "progressive_bundle_usage_detail.return_request_no" Text Returned New
        "The request number of the last return." "退券请求单号" + "最近一次退券的请求单号";
    "progressive_bundle_usage_detail.return_time" Time Returned New
        "When that return was." "退券时间" + "最近一次退券的时间";
    "progressive_bundle_usage_detail.saved_amount" Fen Given New
        "The amount that the user saved by this use; for a discount on all goods or on a category, the amount that the use named." "优惠金额" + "本次核销实际为用户优惠的金额；全场或品类折扣券则是核销时填写的金额";
    "user_product_coupon_bundle_info" Object Bundle New
        "The bundle that this coupon belongs to: each use of a bundle takes a coupon with a code of its own, and the next one is sent after the use." "用户券组信息" + "本券所属的券组：每用一次就是一张有自己券Code的券，核销之后才发放下一张";
    "user_product_coupon_bundle_info.user_coupon_bundle_id" Text Always New
        "The user's bundle." "用户券组ID";
    "user_product_coupon_bundle_info.user_coupon_bundle_index" Index Always New
        "The place of this coupon in the bundle." "用户券组内索引" + "本券在券组中的次序";
    "user_product_coupon_bundle_info.total_count" Count Always New
        "How often the bundle can be used in all." "总可使用次数" + "整个券组的总次数";
    "user_product_coupon_bundle_info.used_count" Count Always New
        "How often the bundle was used so far." "已使用次数" + "整个券组到目前为止的已用次数";
    "sequential_usage_detail" Object Sequential Old
        "The usage of a coupon with several rounds under one code." "多次优惠使用详情" + "同一个券Code分多轮使用";
    "sequential_usage_detail.total_count" Count Always Old
        "How often the coupon can be used in all." "总可使用次数" + "这张券所有轮次的总数";
    "sequential_usage_detail.used_count" Count Always Old
        "How many of its rounds were used so far." "已使用次数" + "这张券到目前为止已用的轮次";
    "sequential_usage_detail.detail_item_list" Objects Given Old
        "The rounds, in their order: the place is `sequential_coupon_index`, from 0." "轮次使用详情列表" + "按轮次顺序排列，位置即 `sequential_coupon_index`，从 0 开始";
    "sequential_usage_detail.detail_item_list[].detail_state" Text Always Old [DETAIL_STATES]
        "The state of the round." "轮次使用详情状态";
    "sequential_usage_detail.detail_item_list[].valid_begin_time" Time Always Old
        "From when the round can be used." "有效期开始时间" + "指这一轮";
    "sequential_usage_detail.detail_item_list[].valid_end_time" Time Always Old
        "Until when the round can be used." "有效期结束时间" + "指这一轮";
    "sequential_usage_detail.detail_item_list[].use_request_no" Text RoundUsed Old
        "The request number of the use: `out_request_no` of the command that used the round, ours or another." "核销请求单号" + "即核销该轮的那条指令的 `out_request_no`，可能是我们的，也可能是别人的";
    "sequential_usage_detail.detail_item_list[].use_time" Time RoundUsed Old
        "When it was used: `use_time` of that command." "核销时间" + "即那条指令的 `use_time`";
    "sequential_usage_detail.detail_item_list[].associated_order_info" Object RoundUsedForOrder Old
        "The WeChat Pay order that the use named." "关联微信支付订单信息" + "即核销时填写的订单";
    "sequential_usage_detail.detail_item_list[].associated_order_info.transaction_id" Text Named Old
        "WeChat Pay's number of the order." "微信支付单号";
    "sequential_usage_detail.detail_item_list[].associated_order_info.out_trade_no" Text Named Old
        "The merchant's number of the order." "商户订单号";
    "sequential_usage_detail.detail_item_list[].associated_order_info.mchid" Text Named Old
        "The merchant that took the order; goes with `out_trade_no`." "商户号" + "即下单商户，与 `out_trade_no` 一同出现";
    "sequential_usage_detail.detail_item_list[].associated_order_info.sub_mchid" Text Named Old
        "The sub-merchant that took the order; goes with `out_trade_no`." "子商户号" + "即下单子商户，与 `out_trade_no` 一同出现";
    "sequential_usage_detail.detail_item_list[].return_request_no" Text Returned Old
        "The request number of the last return of the round." "退券请求单号" + "这一轮最近一次退券的请求单号";
    "sequential_usage_detail.detail_item_list[].return_time" Time Returned Old
        "When that return was." "退券时间" + "最近一次退券的时间";
    "sequential_usage_detail.detail_item_list[].delete_time" Time RoundDeleted Old
        "When the user deleted the round." "删除时间" + "用户删除这一轮的时间";
    "product_coupon" Object Always Both
        "What is offered: the product coupon that this is an instance of." "商品券信息" + "本券对应的商品券，即优惠内容";
    "product_coupon.product_coupon_id" Text Always Both
        "The product coupon." "商品券ID";
    "product_coupon.state" Text Always Both [PRODUCT_STATES]
        "The state of the product coupon." "商品券状态";
    "product_coupon.brand_id" Text Always Both
        "The brand." "品牌ID";
    "product_coupon.scope" Text Always Both [SCOPES]
        "Which goods it is for." "优惠范围" + "适用于哪些商品";
    "product_coupon.type" Text Always Both [TYPES]
        "What kind of offer it is." "商品券类型";
    "product_coupon.usage_mode" Text Always Both [USAGE_MODES]
        "How often it can be used, and where the usage is shown." "使用模式" + "能用几次，使用情况在哪个字段";
    "product_coupon.single_usage_info" Object Single Both
        "The offer, if all stocks share it." "单券模式信息" + "优惠规则；所有批次都适用时在此";
    "product_coupon.single_usage_info.normal_coupon" Object NormalAll Both
        "How much a reduction takes off." "满减券使用规则" + "减多少钱";
    "product_coupon.single_usage_info.normal_coupon.threshold" Fen Always Both
        "The least that must be spent; 0: no condition." "门槛金额" + "最低消费金额，0 表示无门槛";
    "product_coupon.single_usage_info.normal_coupon.discount_amount" Fen Always Both
        "The amount taken off." "固定减免金额";
    "product_coupon.single_usage_info.discount_coupon" Object DiscountAll Both
        "How much a discount takes off." "折扣券使用规则" + "打多少折";
    "product_coupon.single_usage_info.discount_coupon.threshold" Fen Always Both
        "The least that must be spent; 0: no condition." "门槛金额" + "最低消费金额，0 表示无门槛";
    "product_coupon.single_usage_info.discount_coupon.percent_off" Percent Always Both
        "The share taken off: 30 leaves 70 % to pay." "固定减免百分比" + "即减掉的比例，30 表示还需付 70 %";
    "product_coupon.progressive_bundle_usage_info" Object Bundle New
        "How a bundle is used." "多次优惠模式信息" + "券组怎样使用";
    "product_coupon.progressive_bundle_usage_info.count" Count Always New
        "How often it can be used: 3 to 15." "可使用次数" + "3 至 15 次";
    "product_coupon.progressive_bundle_usage_info.interval_days" Days Given New
        "How many days after a use the next one is possible: 1 is the next day from 00:00 on; 0, or absent, is the same day." "多次优惠使用间隔天数" + "核销后隔几天才能用下一次：1 表示次日 00:00 起，0 或没有此字段表示当天即可";
    "product_coupon.sequential_usage_info" Object Sequential Old
        "How the rounds are used." "多次优惠模式信息" + "各轮怎样使用";
    "product_coupon.sequential_usage_info.type" Text Always Old [SEQUENTIAL_TYPES]
        "Whether the offer grows from round to round." "多次优惠规则类型" + "优惠是否逐轮递增";
    "product_coupon.sequential_usage_info.count" Count Always Old
        "How often it can be used." "可使用次数";
    "product_coupon.sequential_usage_info.available_days" Days Always Old
        "For how many days all rounds together can be used." "多次优惠有效天数" + "所有轮次合计的有效天数";
    "product_coupon.sequential_usage_info.interval_days" Days Given Old
        "How many days after a use the next round is possible: 1 is the next day from 00:00 on; 0, or absent, is the same day." "多次优惠使用间隔天数" + "核销后隔几天才能用下一轮：1 表示次日 00:00 起，0 或没有此字段表示当天即可";
    "product_coupon.display_info" Object Always Both
        "How the product coupon is shown." "展示信息";
    "product_coupon.display_info.name" Text Always Both
        "Its name." "商品券名称";
    "product_coupon.display_info.image_url" Url Always Both
        "Its picture." "商品券图片";
    "product_coupon.display_info.background_url" Url Always Both
        "The picture behind it." "商品券背景图";
    "product_coupon.display_info.detail_image_url_list" Urls Given Both
        "Further pictures, at most 8." "商品券详情图列表" + "最多 8 张";
    "product_coupon.display_info.original_price" Fen Given Both
        "The price before the offer, for show; 0 if absent." "商品原价" + "优惠前的价格，仅用于展示；没有此字段即为 0";
    "product_coupon.display_info.combo_package_list" Objects ScopeSingle Both
        "The goods it is for, at most 50 packages." "套餐组合" + "适用的商品，最多 50 个套餐";
    "product_coupon.display_info.combo_package_list[].name" Text Always Both
        "The name of the package." "套餐名";
    "product_coupon.display_info.combo_package_list[].pick_count" Count Always Both
        "How many of the choices the user may pick." "可选单品数量" + "用户可从单品列表中选几样";
    "product_coupon.display_info.combo_package_list[].choice_list" Objects Always Both
        "The choices, at most 99." "单品列表" + "最多 99 个单品";
    "product_coupon.display_info.combo_package_list[].choice_list[].name" Text Always Both
        "The name of the item." "单品名称";
    "product_coupon.display_info.combo_package_list[].choice_list[].price" Fen Always Both
        "The price of the item." "单品价格";
    "product_coupon.display_info.combo_package_list[].choice_list[].count" Count Always Both
        "How many of the item." "单品数量";
    "product_coupon.display_info.combo_package_list[].choice_list[].image_url" Url Given Both
        "The picture of the item." "单品图片";
    "product_coupon.display_info.combo_package_list[].choice_list[].mini_program_appid" Text Given Both
        "The mini program that shows the item; goes with `mini_program_path`." "单品跳转小程序AppID" + "与 `mini_program_path` 一同出现";
    "product_coupon.display_info.combo_package_list[].choice_list[].mini_program_path" Text Given Both
        "The page of the mini program that shows the item; goes with `mini_program_appid`." "单品跳转小程序路径" + "与 `mini_program_appid` 一同出现";
    "product_coupon.out_product_no" Text Given Both
        "The brand's own number of the product coupon." "外部商品ID" + "品牌方自己的编号";
    "product_coupon.deactivate_request_no" Text ItsStateDeactivated Both
        "The request number under which the product coupon was withdrawn." "失效请求单号" + "品牌方使该商品券失效时的请求单号";
    "product_coupon.deactivate_time" Time ItsStateDeactivated Both
        "When the product coupon was withdrawn." "失效时间" + "品牌方使该商品券失效的时间";
    "product_coupon.deactivate_reason" Text ItsStateDeactivated Both
        "Why the product coupon was withdrawn, in the words of the brand." "失效原因" + "由品牌方填写";
    "stock" Object Always Both
        "The stock that the coupon was sent from." "批次信息" + "发放本券的批次";
    "stock.product_coupon_id" Text Always Both
        "The product coupon that the stock belongs to." "商品券ID" + "批次所属的商品券";
    "stock.stock_id" Text Always Both
        "The stock." "批次ID";
    "stock.remark" Text Given Both
        "The brand's own remark; users do not see it." "备注" + "品牌方自用，用户看不到";
    "stock.coupon_code_mode" Text Always Both [CODE_MODES]
        "Where coupon codes come from." "券Code分配模式" + "券Code从哪里来";
    "stock.coupon_code_count_info" Object Upload Both
        "How many codes the brand has uploaded." "品牌方预上传的券Code数量信息";
    "stock.coupon_code_count_info.total_count" Count Always Both
        "How many codes were uploaded." "已上传的Code总数";
    "stock.coupon_code_count_info.available_count" Count Always Both
        "How many of them are left." "当前可用的Code" + "即剩余未发的数量";
    "stock.stock_send_rule" Object Always Both
        "How many coupons may be sent." "发放规则";
    "stock.stock_send_rule.max_count" Count Always Both
        "At most in all." "发放次数总上限";
    "stock.stock_send_rule.max_count_per_day" Count Given Both
        "At most in a day; without a limit if absent." "每日发放次数上限" + "没有此字段则不限";
    "stock.stock_send_rule.max_count_per_user" Count Always Both
        "At most to one user." "每个用户领取次数上限";
    "stock.single_usage_rule" Object Single Both
        "When and how a coupon of this stock is used." "单券使用规则" + "本批次的券何时、怎样使用";
    "stock.single_usage_rule.coupon_available_period" Object Always Both
        "When a coupon of this stock can be used." "券可核销时间" + "指本批次的券";
    "stock.single_usage_rule.coupon_available_period.available_begin_time" Time Always Both
        "The first moment of the stock." "开始时间" + "即批次的开始时间";
    "stock.single_usage_rule.coupon_available_period.available_end_time" Time Always Both
        "The last moment of the stock: no coupon of it outlives this." "结束时间" + "即批次的结束时间，本批次的券都不会晚于它";
    "stock.single_usage_rule.coupon_available_period.available_days" Days Given Both
        "For how many days a coupon can be used once it is valid, the first day included; never with `irregular_available_period_list`." "生效后N天内有效" + "含生效当天；不与 `irregular_available_period_list` 同时出现";
    "stock.single_usage_rule.coupon_available_period.wait_days_after_receive" Days Given Both
        "How many days after it was received a coupon becomes valid; goes with `available_days`." "领取后N天开始生效" + "与 `available_days` 一同出现";
    "stock.single_usage_rule.coupon_available_period.weekly_available_period" Object Given Both
        "The days of the week, and the hours, to which use is limited." "每周固定可用时间" + "只能在一周的这些日子、这些时段使用";
    "stock.single_usage_rule.coupon_available_period.weekly_available_period.day_list" Texts Always Both [DAYS]
        "Days of the week on which it can be used." "每周可用星期数";
    "stock.single_usage_rule.coupon_available_period.weekly_available_period.day_period_list" Objects Given Both
        "Hours of those days, at most 3 periods; the whole day if absent." "当天可用时间段" + "最多 3 段；没有此字段则全天可用";
    "stock.single_usage_rule.coupon_available_period.weekly_available_period.day_period_list[].begin_time" SecondOfDay Always Both
        "When the period begins." "当天可用开始时间";
    "stock.single_usage_rule.coupon_available_period.weekly_available_period.day_period_list[].end_time" SecondOfDay Always Both
        "When the period ends." "当天可用结束时间";
    "stock.single_usage_rule.coupon_available_period.irregular_available_period_list" Objects Given Both
        "Single periods in which it can be used, at most 2; never with the other limits." "无规律的可用时间段" + "最多 2 段；不与其他限制同时出现";
    "stock.single_usage_rule.coupon_available_period.irregular_available_period_list[].begin_time" Time Always Both
        "When the period begins." "开始时间";
    "stock.single_usage_rule.coupon_available_period.irregular_available_period_list[].end_time" Time Always Both
        "When the period ends." "结束时间";
    "stock.single_usage_rule.coupon_available_period.available_seconds" Seconds Given New
        "For how long a coupon can be used once it was received, a whole number of hours; never with the other limits." "领取后N秒内有效" + "自领取时刻起计，为整小时数；不与其他限制同时出现";
    "stock.single_usage_rule.normal_coupon" Object NormalItem Both
        "How much a reduction takes off." "满减券使用规则" + "减多少钱";
    "stock.single_usage_rule.normal_coupon.threshold" Fen Always Both
        "The least that must be spent; 0: no condition." "门槛金额" + "最低消费金额，0 表示无门槛";
    "stock.single_usage_rule.normal_coupon.discount_amount" Fen Always Both
        "The amount taken off." "固定减免金额";
    "stock.single_usage_rule.discount_coupon" Object DiscountItem Both
        "How much a discount takes off." "折扣券使用规则" + "打多少折";
    "stock.single_usage_rule.discount_coupon.threshold" Fen Always Both
        "The least that must be spent; 0: no condition." "门槛金额" + "最低消费金额，0 表示无门槛";
    "stock.single_usage_rule.discount_coupon.percent_off" Percent Always Both
        "The share taken off: 30 leaves 70 % to pay." "固定减免百分比" + "即减掉的比例，30 表示还需付 70 %";
    "stock.single_usage_rule.exchange_coupon" Object ExchangeItem Both
        "At which price it is exchanged." "兑换券使用规则" + "以什么价格兑换";
    "stock.single_usage_rule.exchange_coupon.threshold" Fen Always Both
        "The least that must be spent; 0: no condition." "门槛金额" + "最低消费金额，0 表示无门槛";
    "stock.single_usage_rule.exchange_coupon.exchange_price" Fen Always Both
        "What the user pays in exchange." "固定兑换价格" + "兑换时用户支付的金额";
    "stock.progressive_bundle_usage_rule" Object Bundle New
        "When and how a coupon of this stock is used." "多次优惠使用规则" + "本批次的券何时、怎样使用";
    "stock.progressive_bundle_usage_rule.coupon_available_period" Object Always New
        "When a coupon of this stock can be used." "券可核销时间" + "指本批次的券";
    "stock.progressive_bundle_usage_rule.coupon_available_period.available_begin_time" Time Always New
        "The first moment of the stock." "批次开始时间" + "即批次的开始时间";
    "stock.progressive_bundle_usage_rule.coupon_available_period.available_end_time" Time Always New
        "The last moment of the stock: no coupon of it outlives this." "批次结束时间" + "即批次的结束时间，本批次的券都不会晚于它";
    "stock.progressive_bundle_usage_rule.coupon_available_period.available_days" Days Given New
        "For how many days a coupon can be used once it is valid, the first day included; never with `irregular_available_period_list`." "券生效后N天内可用" + "含生效当天；不与 `irregular_available_period_list` 同时出现";
    "stock.progressive_bundle_usage_rule.coupon_available_period.wait_days_after_receive" Days Given New
        "How many days after it was received a coupon becomes valid; goes with `available_days`." "领券后需等待N天才生效" + "与 `available_days` 一同出现";
    "stock.progressive_bundle_usage_rule.coupon_available_period.weekly_available_period" Object Given New
        "The days of the week, and the hours, to which use is limited." "每周固定可用时间" + "只能在一周的这些日子、这些时段使用";
    "stock.progressive_bundle_usage_rule.coupon_available_period.weekly_available_period.day_list" Texts Always New [DAYS]
        "Days of the week on which it can be used." "每周可用星期数";
    "stock.progressive_bundle_usage_rule.coupon_available_period.weekly_available_period.day_period_list" Objects Given New
        "Hours of those days, at most 3 periods; the whole day if absent." "当天可用时间段" + "最多 3 段；没有此字段则全天可用";
    "stock.progressive_bundle_usage_rule.coupon_available_period.weekly_available_period.day_period_list[].begin_time" SecondOfDay Always New
        "When the period begins." "当天可用开始时间";
    "stock.progressive_bundle_usage_rule.coupon_available_period.weekly_available_period.day_period_list[].end_time" SecondOfDay Always New
        "When the period ends." "当天可用结束时间";
    "stock.progressive_bundle_usage_rule.coupon_available_period.irregular_available_period_list" Objects Given New
        "Single periods in which it can be used, at most 2; never with the other limits." "指定可用时间段" + "最多 2 段；不与其他限制同时出现";
    "stock.progressive_bundle_usage_rule.coupon_available_period.irregular_available_period_list[].begin_time" Time Always New
        "When the period begins." "开始时间";
    "stock.progressive_bundle_usage_rule.coupon_available_period.irregular_available_period_list[].end_time" Time Always New
        "When the period ends." "结束时间";
    "stock.progressive_bundle_usage_rule.coupon_available_period.available_seconds" Seconds Given New
        "For how long a coupon can be used once it was received, a whole number of hours; never with the other limits." "领取后N秒内有效" + "自领取时刻起计，为整小时数；不与其他限制同时出现";
    "stock.progressive_bundle_usage_rule.normal_coupon" Object Normal New
        "How much a reduction takes off." "满减券使用规则" + "减多少钱";
    "stock.progressive_bundle_usage_rule.normal_coupon.threshold" Fen Always New
        "The least that must be spent; 0: no condition." "门槛金额" + "最低消费金额，0 表示无门槛";
    "stock.progressive_bundle_usage_rule.normal_coupon.discount_amount" Fen Always New
        "The amount taken off." "固定减免金额";
    "stock.progressive_bundle_usage_rule.discount_coupon" Object Discount New
        "How much a discount takes off." "折扣券使用规则" + "打多少折";
    "stock.progressive_bundle_usage_rule.discount_coupon.threshold" Fen Always New
        "The least that must be spent; 0: no condition." "门槛金额" + "最低消费金额，0 表示无门槛";
    "stock.progressive_bundle_usage_rule.discount_coupon.percent_off" Percent Always New
        "The share taken off: 30 leaves 70 % to pay." "固定减免百分比" + "即减掉的比例，30 表示还需付 70 %";
    "stock.progressive_bundle_usage_rule.exchange_coupon" Object Exchange New
        "At which price it is exchanged." "兑换券使用规则" + "以什么价格兑换";
    "stock.progressive_bundle_usage_rule.exchange_coupon.threshold" Fen Always New
        "The least that must be spent; 0: no condition." "门槛金额" + "最低消费金额，0 表示无门槛";
    "stock.progressive_bundle_usage_rule.exchange_coupon.exchange_price" Fen Always New
        "What the user pays in exchange." "固定兑换价格" + "兑换时用户支付的金额";
    "stock.stock_bundle_info" Object Bundle New
        "The bundle of stocks that the stock belongs to: one for each round." "批次组信息" + "批次所属的批次组，每一次使用对应其中一个批次";
    "stock.stock_bundle_info.stock_bundle_id" Text Always New
        "The bundle of stocks." "批次所属批次组ID";
    "stock.stock_bundle_info.stock_bundle_index" Index Always New
        "The place of the stock in the bundle." "批次在批次组内的次序";
    "stock.sequential_usage_rule" Object Sequential Old
        "When and how the rounds are used." "多次优惠使用规则" + "各轮何时、怎样使用";
    "stock.sequential_usage_rule.coupon_available_period" Object Always Old
        "When a coupon of this stock can be used." "券可核销时间" + "指本批次的券";
    "stock.sequential_usage_rule.coupon_available_period.available_begin_time" Time Always Old
        "The first moment of the stock." "开始时间" + "即批次的开始时间";
    "stock.sequential_usage_rule.coupon_available_period.available_end_time" Time Always Old
        "The last moment of the stock: no coupon of it outlives this." "结束时间" + "即批次的结束时间，本批次的券都不会晚于它";
    "stock.sequential_usage_rule.coupon_available_period.wait_days_after_receive" Days Given Old
        "How many days after it was received a coupon becomes valid." "领取后N天开始生效";
    "stock.sequential_usage_rule.coupon_available_period.weekly_available_period" Object Given Old
        "The days of the week, and the hours, to which use is limited." "每周固定可用时间" + "只能在一周的这些日子、这些时段使用";
    "stock.sequential_usage_rule.coupon_available_period.weekly_available_period.day_list" Texts Always Old [DAYS]
        "Days of the week on which it can be used." "每周可用星期数";
    "stock.sequential_usage_rule.coupon_available_period.weekly_available_period.day_period_list" Objects Given Old
        "Hours of those days, at most 3 periods; the whole day if absent." "当天可用时间段" + "最多 3 段；没有此字段则全天可用";
    "stock.sequential_usage_rule.coupon_available_period.weekly_available_period.day_period_list[].begin_time" SecondOfDay Always Old
        "When the period begins." "当天可用开始时间";
    "stock.sequential_usage_rule.coupon_available_period.weekly_available_period.day_period_list[].end_time" SecondOfDay Always Old
        "When the period ends." "当天可用结束时间";
    "stock.sequential_usage_rule.coupon_available_period.irregular_available_period_list" Objects Given Old
        "Single periods in which it can be used, at most 2; never with the other limits." "无规律的可用时间段" + "最多 2 段；不与其他限制同时出现";
    "stock.sequential_usage_rule.coupon_available_period.irregular_available_period_list[].begin_time" Time Always Old
        "When the period begins." "开始时间";
    "stock.sequential_usage_rule.coupon_available_period.irregular_available_period_list[].end_time" Time Always Old
        "When the period ends." "结束时间";
    "stock.sequential_usage_rule.normal_coupon_list" Objects Normal Old
        "How much a reduction takes off: an element for each round, in the order of `detail_item_list`." "满减券使用规则" + "每轮一个元素，顺序与 `detail_item_list` 相同";
    "stock.sequential_usage_rule.normal_coupon_list[].threshold" Fen Always Old
        "The least that must be spent; 0: no condition." "门槛金额" + "最低消费金额，0 表示无门槛";
    "stock.sequential_usage_rule.normal_coupon_list[].discount_amount" Fen Always Old
        "The amount taken off." "固定减免金额";
    "stock.sequential_usage_rule.discount_coupon_list" Objects Discount Old
        "How much a discount takes off: an element for each round, in the order of `detail_item_list`." "折扣券使用规则列表" + "每轮一个元素，顺序与 `detail_item_list` 相同";
    "stock.sequential_usage_rule.discount_coupon_list[].threshold" Fen Always Old
        "The least that must be spent; 0: no condition." "门槛金额" + "最低消费金额，0 表示无门槛";
    "stock.sequential_usage_rule.discount_coupon_list[].percent_off" Percent Always Old
        "The share taken off: 30 leaves 70 % to pay." "固定减免百分比" + "即减掉的比例，30 表示还需付 70 %";
    "stock.sequential_usage_rule.exchange_coupon_list" Objects Exchange Old
        "At which price it is exchanged: an element for each round, in the order of `detail_item_list`." "兑换券使用规则列表" + "每轮一个元素，顺序与 `detail_item_list` 相同";
    "stock.sequential_usage_rule.exchange_coupon_list[].threshold" Fen Always Old
        "The least that must be spent; 0: no condition." "门槛金额" + "最低消费金额，0 表示无门槛";
    "stock.sequential_usage_rule.exchange_coupon_list[].exchange_price" Fen Always Old
        "What the user pays in exchange." "固定兑换价格" + "兑换时用户支付的金额";
    "stock.sequential_usage_rule.special_first" Boolean Given Old
        "Whether the first round has an offer of its own: the first element of the list." "多次优惠是否提供首笔特惠" + "首轮的优惠即列表的第一个元素";
    "stock.usage_rule_display_info" Object Always Both
        "What users are shown about its use." "券使用规则展示信息" + "向用户说明怎样使用";
    "stock.usage_rule_display_info.coupon_usage_method_list" Texts Always Both [USAGE_METHODS]
        "The ways in which it can be used." "券使用方式列表";
    "stock.usage_rule_display_info.mini_program_appid" Text MiniProgram Both
        "The mini program in which it is used." "小程序AppID" + "用券的小程序";
    "stock.usage_rule_display_info.mini_program_path" Text MiniProgram Both
        "The page of that mini program." "小程序跳转路径" + "该小程序中的页面";
    "stock.usage_rule_display_info.app_path" Text H5 Both
        "The page of the app to jump to." "APP跳转路径";
    "stock.usage_rule_display_info.usage_description" Text Always Both
        "The rules in words, for users." "券使用说明" + "给用户看的文字说明";
    "stock.usage_rule_display_info.coupon_available_store_info" Object Given Both
        "What users are shown about the stores." "券可用门店信息" + "向用户说明哪些门店可用";
    "stock.usage_rule_display_info.coupon_available_store_info.description" Text Always Both
        "The stores in words." "券可用门店描述";
    "stock.usage_rule_display_info.coupon_available_store_info.mini_program_appid" Text Given Both
        "The mini program that lists the stores; goes with `mini_program_path`." "小程序AppID" + "可查看门店列表的小程序，与 `mini_program_path` 一同出现";
    "stock.usage_rule_display_info.coupon_available_store_info.mini_program_path" Text Given Both
        "The page of that mini program." "小程序跳转路径" + "该小程序中的页面";
    "stock.usage_rule_display_info.app_jump_type" Text App New [APP_JUMPS]
        "How a user gets into the app." "APP跳转类型" + "用户怎样进入 APP";
    "stock.usage_rule_display_info.passcode_link" Text Passcode New
        "The pass code that the user copies." "口令链接" + "用户复制的口令";
    "stock.coupon_display_info" Object Always Both
        "How the user's coupon is shown." "用户商品券展示信息";
    "stock.coupon_display_info.code_display_mode" Text Always Both [CODE_DISPLAYS]
        "How the code is shown." "用户商品券Code展示模式";
    "stock.coupon_display_info.background_color" Text Given Both [COLORS]
        "The color behind it; `Color020` if absent." "背景颜色" + "没有此字段则为 `Color020`";
    "stock.coupon_display_info.entrance_mini_program" Object Given Both
        "A way into a mini program." "小程序入口";
    "stock.coupon_display_info.entrance_mini_program.appid" Text Always Both
        "The mini program." "小程序appid";
    "stock.coupon_display_info.entrance_mini_program.path" Text Always Both
        "The page of that mini program." "小程序跳转路径" + "该小程序中的页面";
    "stock.coupon_display_info.entrance_mini_program.entrance_wording" Text Always Both
        "The words on the entrance." "入口文案";
    "stock.coupon_display_info.entrance_mini_program.guidance_wording" Text Always Both
        "The words beside it." "引导文案" + "入口旁边的文案";
    "stock.coupon_display_info.entrance_official_account" Object Given Both
        "A way into an official account." "公众号入口";
    "stock.coupon_display_info.entrance_official_account.appid" Text Always Both
        "The official account." "公众号AppID";
    "stock.coupon_display_info.entrance_finder" Object Given Both
        "A way into a video channel." "视频号入口";
    "stock.coupon_display_info.entrance_finder.finder_id" Text Always Both
        "The video channel." "视频号ID";
    "stock.coupon_display_info.entrance_finder.finder_video_id" Text Always Both
        "The video." "视频号视频ID";
    "stock.coupon_display_info.entrance_finder.finder_video_cover_image_url" Url Always Both
        "The picture of the video." "视频号封面图";
    "stock.notify_config" Object Always Both
        "Where WeChat Pay sends its own notifications about coupons." "事件通知配置" + "微信支付自己的券事件通知";
    "stock.notify_config.notify_appid" Text Always Both
        "The app under which those notifications name the user." "事件通知appid" + "这些通知以该 appid 下的 openid 指代用户";
    "stock.store_scope" Text Always Both [STORE_SCOPES]
        "In which stores of the brand it can be used." "可用门店范围" + "品牌的哪些门店可用";
    "stock.sent_count_info" Object Always Both
        "How many coupons of the stock were sent." "已发放次数" + "本批次已发放的券";
    "stock.sent_count_info.total_count" Count Always Both
        "In all." "已发放总次数";
    "stock.sent_count_info.today_count" Count Always Both
        "Today." "当天已发放次数";
    "stock.state" Text Always Both [STOCK_STATES]
        "The state of the stock." "批次状态";
    "stock.deactivate_request_no" Text ItsStateDeactivated Both
        "The request number under which the stock was withdrawn." "失效请求单号" + "品牌方使该批次失效时的请求单号";
    "stock.deactivate_time" Time ItsStateDeactivated Both
        "When the stock was withdrawn." "失效时间" + "品牌方使该批次失效的时间";
    "stock.deactivate_reason" Text ItsStateDeactivated Both
        "Why the stock was withdrawn, in the words of the brand." "失效原因" + "由品牌方填写";
    "stock.brand_id" Text Always Both
        "The brand." "品牌ID";
    "attach" Text ApiAttached Both
        "What the sender attached, as it came." "自定义附加信息" + "发券方填写，原样返回";
    "channel_custom_info" Text OtherChannel Both
        "What the channel attached; `send_channel` says how to read it." "渠道自定义信息" + "由渠道填写，按 `send_channel` 解读";
    "coupon_tag_info" Object Given New
        "Tags of the coupon." "用户商品券标签信息";
    "coupon_tag_info.coupon_tag_list" Texts Given New [TAGS]
        "The tags." "用户商品券标签列表";
    "coupon_tag_info.member_tag_info" Object Member New
        "What the member tag means." "会员标签信息";
    "coupon_tag_info.member_tag_info.member_card_id" Text Given New
        "The template of the membership card." "会员卡模板ID";
    "brand_id" Text PartnerMode Both
        "The brand." "品牌ID";
}
