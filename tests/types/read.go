// Reads events by the generated types, and says of each what a subscriber usually wants to know.
package main

import (
	"fmt"
	"log"
	"os"
)

func left(coupon *Coupon) int64 {
	if bundle := coupon.UserProductCouponBundleInfo; bundle != nil {
		return *bundle.TotalCount - *bundle.UsedCount
	}
	if rounds := coupon.SequentialUsageDetail; rounds != nil {
		return *rounds.TotalCount - *rounds.UsedCount
	}
	if coupon.CouponState == "EFFECTIVE" {
		return 1
	}
	return 0
}

func numbers(coupon *Coupon) (used []*string) {
	if usage := coupon.SingleUsageDetail; usage != nil {
		used = append(used, usage.UseRequestNo)
	}
	if usage := coupon.ProgressiveBundleUsageDetail; usage != nil {
		used = append(used, usage.UseRequestNo)
	}
	if rounds := coupon.SequentialUsageDetail; rounds != nil {
		for _, item := range rounds.DetailItemList {
			used = append(used, item.UseRequestNo)
		}
	}
	return used
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
		data := event.Data
		if data.Coupon == nil {
			fmt.Println(data.Outcome, "none")
			continue
		}
		ours := false
		for _, number := range numbers(data.Coupon) {
			ours = ours || number != nil && *number == *data.OutRequestNo
		}
		fmt.Println(data.Outcome, "ours", ours, "left", left(data.Coupon), "until", *data.Coupon.ValidEndTime)
	}
}
