import events.*;
import java.nio.file.*;
import java.util.*;
import java.util.stream.*;

/** Reads events by the generated types, and says of each what a subscriber usually wants to know. */
public class Read {
    static long left(Coupon coupon) {
        var bundle = coupon.getUserProductCouponBundleInfo();
        var rounds = coupon.getSequentialUsageDetail();
        if (bundle != null) return bundle.getTotalCount() - bundle.getUsedCount();
        if (rounds != null) return rounds.getTotalCount() - rounds.getUsedCount();
        return coupon.getCouponState().equals("EFFECTIVE") ? 1 : 0;
    }

    static Stream<String> numbers(Coupon coupon) {
        var single = Optional.ofNullable(coupon.getSingleUsageDetail()).map(usage -> usage.getUseRequestNo());
        var bundle = Optional.ofNullable(coupon.getProgressiveBundleUsageDetail()).map(usage -> usage.getUseRequestNo());
        var rounds = Optional.ofNullable(coupon.getSequentialUsageDetail()).stream()
            .flatMap(detail -> detail.getDetailItemList().stream()).map(item -> item.getUseRequestNo());
        return Stream.of(single.stream(), bundle.stream(), rounds).flatMap(numbers -> numbers).filter(Objects::nonNull);
    }

    public static void main(String[] files) throws Exception {
        for (var file : files) {
            var data = Converter.fromJsonString(Files.readString(Path.of(file))).getData();
            var outcome = data.getOutcome().toValue();
            var coupon = data.getCoupon();
            if (coupon == null) {
                System.out.println(outcome + " none");
                continue;
            }
            var ours = numbers(coupon).anyMatch(number -> number.equals(data.getOutRequestNo()));
            System.out.println(outcome + " ours " + ours + " left " + left(coupon) + " until " + coupon.getValidEndTime());
        }
    }
}
