// What an event says of the coupon, for those who need to know: part of subscribe.go.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

var usages = map[string]string{
	"SINGLE":             "single_usage_detail",
	"PROGRESSIVE_BUNDLE": "progressive_bundle_usage_detail",
	"SEQUENTIAL":         "sequential_usage_detail",
}

// What is missing or of another type is an empty text, an empty object, or no number.
func text(value any) string { text, _ := value.(string); return text }

func object(value any) map[string]any { object, _ := value.(map[string]any); return object }

func whole(value any) (int64, bool) {
	number, _ := value.(json.Number)
	whole, err := number.Int64()
	return whole, err == nil
}

// What the uses say under a name; "-" if they say nothing.
func shown(uses []map[string]any, name string) string {
	var found []string
	for _, use := range uses {
		if number, ok := whole(use[name]); ok && name == "saved_amount" {
			found = append(found, fmt.Sprint(number))
		} else if text := text(use[name]); text != "" && name != "saved_amount" {
			found = append(found, text)
		}
	}
	if len(found) == 0 {
		return "-"
	}
	return strings.Join(found, ",")
}

// Did our order use the coupon? Who did, and when? What did it save, what is left, until when? See docs/coupon.md.
func answers(body []byte) string {
	var event map[string]any
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber() // a double would lose digits
	must(0, decoder.Decode(&event))
	data := object(event["data"])
	coupon, number, redeemed := object(data["coupon"]), text(data["out_request_no"]), data["outcome"] == "redeemed"
	state, mode := text(coupon["coupon_state"]), text(object(coupon["product_coupon"])["usage_mode"])
	var there []string
	for mode, name := range usages {
		if object(coupon[name]) != nil {
			there = append(there, mode)
		}
	}
	if mode == "" && len(there) == 1 {
		mode = there[0]
	}
	usage := object(coupon[usages[mode]])
	var uses, ours []map[string]any
	if rounds, _ := usage["detail_item_list"].([]any); mode == "SEQUENTIAL" {
		for _, round := range rounds {
			if round := object(round); round["detail_state"] == "USED" {
				uses = append(uses, round)
				if round["use_request_no"] == number {
					ours = append(ours, round)
				}
			}
		}
		if redeemed || len(ours) > 0 {
			uses = ours
		}
	} else if state == "USED" {
		uses = append(uses, usage)
	}
	counts := usage
	if mode == "PROGRESSIVE_BUNDLE" {
		counts = object(coupon["user_product_coupon_bundle_info"])
	}
	total, isTotal := whole(counts["total_count"])
	used, isUsed := whole(counts["used_count"])
	left, until := "-", "-" // unknown, which is not 0
	isOver := map[string]bool{"EXPIRED": true, "DELETED": true, "DEACTIVATED": true}[state]
	isOpen := map[string]bool{"CONFIRMING": true, "PENDING": true, "EFFECTIVE": true, "USED": true}[state]
	switch {
	case (mode == "SINGLE" || mode == "SEQUENTIAL") && isOver, mode == "SINGLE" && state == "USED":
		left = "0"
	case mode == "SINGLE" && isOpen:
		left = "1"
	case usages[mode] != "" && mode != "SINGLE" && isOpen && isTotal && isUsed && used <= total:
		left = fmt.Sprint(total - used)
	}
	// The end of a used coupon of a bundle is not that of the next one.
	if left != "-" && !(mode == "PROGRESSIVE_BUNDLE" && state == "USED") {
		if end := text(coupon["valid_end_time"]); end != "" {
			until = end
		}
	}
	word, known := map[any]string{"redeemed": "yes", "unresolved": "unknown"}[data["outcome"]]
	if !known {
		word = "no"
	}
	by := shown(uses, "use_request_no")
	if redeemed {
		by = number
	}
	when, saved := shown(uses, "use_time"), shown(uses, "saved_amount")
	return fmt.Sprintf("used %s by %s when %s saved %s left %s until %s", word, by, when, saved, left, until)
}
