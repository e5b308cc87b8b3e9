import events.*;
import java.nio.file.*;
import java.util.*;
import java.util.function.*;
import java.util.stream.*;

/** Reads events by the generated types, and says of each what a subscriber usually wants to know: see docs/coupon.md. */
public class Read {
    record Use(String number, String time, Long saved) {}

    /** The mode that is named; else the one whose usage is there, if there is only one. */
    static String modeOf(Coupon coupon) {
        var product = coupon.getProductCoupon();
        if (product != null && product.getUsageMode() != null) return product.getUsageMode();
        var there = new ArrayList<String>();
        if (coupon.getSingleUsageDetail() != null) there.add("SINGLE");
        if (coupon.getProgressiveBundleUsageDetail() != null) there.add("PROGRESSIVE_BUNDLE");
        if (coupon.getSequentialUsageDetail() != null) there.add("SEQUENTIAL");
        return there.size() == 1 ? there.get(0) : "";
    }

    /** The use of the coupon, or of our round; of a coupon without a round of ours, every use. */
    static List<Use> usesOf(Coupon coupon, Data data) {
        var single = coupon.getSingleUsageDetail();
        var bundle = coupon.getProgressiveBundleUsageDetail();
        var rounds = coupon.getSequentialUsageDetail();
        var mode = modeOf(coupon);
        if (mode.equals("SEQUENTIAL") && rounds != null && rounds.getDetailItemList() != null) {
            var used = rounds.getDetailItemList().stream().filter(round -> "USED".equals(round.getDetailState()))
                .map(round -> new Use(round.getUseRequestNo(), round.getUseTime(), null)).toList();
            var ours = used.stream().filter(use -> data.getOutRequestNo().equals(use.number())).toList();
            return !ours.isEmpty() || data.getOutcome() == Outcome.REDEEMED ? ours : used;
        }
        if (!coupon.getCouponState().equals("USED")) return List.of();
        if (mode.equals("SINGLE") && single != null)
            return List.of(new Use(single.getUseRequestNo(), single.getUseTime(), single.getSavedAmount()));
        if (mode.equals("PROGRESSIVE_BUNDLE") && bundle != null)
            return List.of(new Use(bundle.getUseRequestNo(), bundle.getUseTime(), bundle.getSavedAmount()));
        return List.of();
    }

    /** How many uses are left; null if that is unknown, which is not 0. */
    static Long leftOf(Coupon coupon) {
        var mode = modeOf(coupon);
        var state = coupon.getCouponState();
        if (Set.of("EXPIRED", "DELETED", "DEACTIVATED").contains(state))
            return Set.of("SINGLE", "SEQUENTIAL").contains(mode) ? 0L : null;
        if (!Set.of("CONFIRMING", "PENDING", "EFFECTIVE", "USED").contains(state)) return null;
        if (mode.equals("SINGLE")) return state.equals("USED") ? 0L : 1L;
        var bundle = coupon.getUserProductCouponBundleInfo();
        var rounds = coupon.getSequentialUsageDetail();
        Long total = null, used = null;
        if (mode.equals("PROGRESSIVE_BUNDLE") && bundle != null) {
            total = bundle.getTotalCount();
            used = bundle.getUsedCount();
        } else if (mode.equals("SEQUENTIAL") && rounds != null) {
            total = rounds.getTotalCount();
            used = rounds.getUsedCount();
        }
        return total == null || used == null || used > total ? null : Long.valueOf(total - used);
    }

    static String shown(List<Use> uses, Function<Use, Object> read) {
        var found = uses.stream().map(read).filter(Objects::nonNull).map(Object::toString).toList();
        return found.isEmpty() ? "-" : String.join(",", found);
    }

    static String answers(Data data) {
        var coupon = data.getCoupon();
        List<Use> uses = coupon == null ? List.of() : usesOf(coupon, data);
        var left = coupon == null ? null : leftOf(coupon);
        // The end of a used coupon of a bundle is not that of the next one.
        var isNext = coupon != null && modeOf(coupon).equals("PROGRESSIVE_BUNDLE") && coupon.getCouponState().equals("USED");
        var until = left == null || isNext ? null : coupon.getValidEndTime();
        var outcome = data.getOutcome();
        var word = outcome == Outcome.REDEEMED ? "yes" : outcome == Outcome.UNRESOLVED ? "unknown" : "no";
        var by = outcome == Outcome.REDEEMED ? data.getOutRequestNo() : shown(uses, Use::number);
        return "used " + word + " by " + by + " when " + shown(uses, Use::time) + " saved " + shown(uses, Use::saved)
            + " left " + (left == null ? "-" : left) + " until " + (until == null ? "-" : until);
    }

    public static void main(String[] files) throws Exception {
        for (var file : files) {
            System.out.println(answers(Converter.fromJsonString(Files.readString(Path.of(file))).getData()));
        }
    }
}
