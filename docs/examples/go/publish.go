// Publishes commands: go run publish.go COMMAND.json …
// (apt install golang-github-rabbitmq-amqp091-go-dev, or go get github.com/rabbitmq/amqp091-go)
// Ends with 0 only when the broker has confirmed every one of them. AMQP_URI says where it is.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	uri := os.Getenv("AMQP_URI")
	if uri == "" {
		uri = "amqp://guest:guest@127.0.0.1:5672/%2f"
	}
	connection := must(amqp.Dial(uri))
	channel := must(connection.Channel())
	must(0, channel.Confirm(false))
	// What no queue takes comes back, and does so before its confirm.
	returned := channel.NotifyReturn(make(chan amqp.Return, 1))
	// By a listener: before 1.6 a deferred confirm that is faster than its own registration is waited for for ever.
	confirms := channel.NotifyPublish(make(chan amqp.Confirmation, 1))
	code := 0
	for _, file := range os.Args[1:] {
		command := amqp.Publishing{
			ContentType:   "application/json",
			DeliveryMode:  amqp.Persistent,
			CorrelationId: filepath.Base(file), // comes back with the event: an order number, say
			Body:          must(os.ReadFile(file)),
		}
		late := time.AfterFunc(30*time.Second, func() { log.Fatal("no confirm, nobody knows: publish again ", file) })
		// Mandatory: it comes back instead of vanishing.
		must(0, channel.PublishWithContext(context.Background(), "redemption.commands", "redemption.use", true, false, command))
		// A connection that dies meanwhile counts as a refusal: nobody knows then.
		taken := (<-confirms).Ack
		late.Stop()
		if len(returned) > 0 {
			<-returned
			taken = false
		}
		// A command that was not taken may always be published again, as it is.
		fmt.Println(map[bool]string{true: "confirmed", false: "NOT taken"}[taken], file)
		code |= map[bool]int{false: 1}[taken]
	}
	os.Exit(code)
}
