// Reads events by the generated types, and says of each what a subscriber usually wants to know: see docs/coupon.md.
package main

import (
	"fmt"
	"log"
	"os"
	"strings"
)

type use struct {
	number, time *string
	saved        *int64
}

// The mode that is named; else the one whose usage is there, if there is only one.
func modeOf(coupon *Coupon) string {
	if product := coupon.ProductCoupon; product != nil && product.UsageMode != nil {
		return *product.UsageMode
	}
	var there []string
	if coupon.SingleUsageDetail != nil {
		there = append(there, "SINGLE")
	}
	if coupon.ProgressiveBundleUsageDetail != nil {
		there = append(there, "PROGRESSIVE_BUNDLE")
	}
	if coupon.SequentialUsageDetail != nil {
		there = append(there, "SEQUENTIAL")
	}
	if len(there) == 1 {
		return there[0]
	}
	return ""
}

// The use of the coupon, or of our round; of a coupon without a round of ours, every use.
func usesOf(coupon *Coupon, data *Data) (uses []use) {
	mode, isUsed := modeOf(coupon), coupon.CouponState == "USED"
	single, bundle, rounds := coupon.SingleUsageDetail, coupon.ProgressiveBundleUsageDetail, coupon.SequentialUsageDetail
	switch {
	case mode == "SINGLE" && single != nil && isUsed:
		uses = []use{{single.UseRequestNo, single.UseTime, single.SavedAmount}}
	case mode == "PROGRESSIVE_BUNDLE" && bundle != nil && isUsed:
		uses = []use{{bundle.UseRequestNo, bundle.UseTime, bundle.SavedAmount}}
	case mode == "SEQUENTIAL" && rounds != nil:
		var ours []use
		for _, round := range rounds.DetailItemList {
			if round.DetailState == nil || *round.DetailState != "USED" {
				continue
			}
			used := use{round.UseRequestNo, round.UseTime, nil}
			uses = append(uses, used)
			if used.number != nil && *used.number == *data.OutRequestNo {
				ours = append(ours, used)
			}
		}
		if len(ours) > 0 || data.Outcome == "redeemed" {
			uses = ours
		}
	}
	return uses
}

// How many uses are left, and whether that is known: unknown is not 0.
func leftOf(coupon *Coupon) (left int64, known bool) {
	mode, state := modeOf(coupon), coupon.CouponState
	switch state {
	case "EXPIRED", "DELETED", "DEACTIVATED":
		return 0, mode == "SINGLE" || mode == "SEQUENTIAL"
	case "CONFIRMING", "PENDING", "EFFECTIVE", "USED":
	default:
		return 0, false
	}
	var total, used *int64
	switch mode {
	case "SINGLE":
		if state == "USED" {
			return 0, true
		}
		return 1, true
	case "PROGRESSIVE_BUNDLE":
		if bundle := coupon.UserProductCouponBundleInfo; bundle != nil {
			total, used = bundle.TotalCount, bundle.UsedCount
		}
	case "SEQUENTIAL":
		if rounds := coupon.SequentialUsageDetail; rounds != nil {
			total, used = rounds.TotalCount, rounds.UsedCount
		}
	}
	if total == nil || used == nil || *used > *total {
		return 0, false
	}
	return *total - *used, true
}

func joined(values []string) string {
	if len(values) == 0 {
		return "-"
	}
	return strings.Join(values, ",")
}

func answers(data *Data) string {
	var numbers, times, amounts []string
	left, until := "-", "-"
	if coupon := data.Coupon; coupon != nil {
		for _, use := range usesOf(coupon, data) {
			if use.number != nil {
				numbers = append(numbers, *use.number)
			}
			if use.time != nil {
				times = append(times, *use.time)
			}
			if use.saved != nil {
				amounts = append(amounts, fmt.Sprint(*use.saved))
			}
		}
		count, known := leftOf(coupon)
		if known {
			left = fmt.Sprint(count)
		}
		// The end of a used coupon of a bundle is not that of the next one.
		isNext := modeOf(coupon) == "PROGRESSIVE_BUNDLE" && coupon.CouponState == "USED"
		if known && !isNext && coupon.ValidEndTime != nil {
			until = *coupon.ValidEndTime
		}
	}
	word := "no"
	switch data.Outcome {
	case "redeemed":
		word, numbers = "yes", []string{*data.OutRequestNo}
	case "unresolved":
		word = "unknown"
	}
	by, when, saved := joined(numbers), joined(times), joined(amounts)
	return fmt.Sprintf("used %s by %s when %s saved %s left %s until %s", word, by, when, saved, left, until)
}

func main() {
	for _, file := range os.Args[1:] {
		text, err := os.ReadFile(file)
		if err != nil {
			log.Fatal(err)
		}
		event, err := UnmarshalRedemptionEvent(text)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(answers(&event.Data))
	}
}
