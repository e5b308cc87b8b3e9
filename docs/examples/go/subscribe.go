// Receives result events: go run subscribe.go coupon.go   (apt install golang-github-rabbitmq-amqp091-go-dev, or go get …)
// Each event is stored once, under its id, and only then acknowledged. AMQP_URI is the broker address; the events are
// kept in the folder results. A table with the id as primary key works too.
package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	amqp "github.com/rabbitmq/amqp091-go"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err) // not acknowledged: the broker delivers it again after a restart
	}
	return value
}

// Whether the event is new. The file is complete before it gets its name, so its name marks a stored event.
func store(folder *os.File, id string, body []byte) bool {
	draft := must(os.Create(filepath.Join("results", fmt.Sprintf(".draft-%d", os.Getpid()))))
	defer os.Remove(draft.Name())
	must(draft.Write(body))
	must(0, draft.Sync())
	must(0, draft.Close())
	err := os.Link(draft.Name(), filepath.Join("results", filepath.Base(id)+".json"))
	if !errors.Is(err, os.ErrExist) {
		must(0, err)
	}
	must(0, folder.Sync()) // survives a power failure
	return err == nil
}

func main() {
	uri := os.Getenv("AMQP_URI")
	if uri == "" {
		uri = "amqp://guest:guest@127.0.0.1:5672/%2f"
	}
	must(0, os.MkdirAll("results", 0o755))
	folder := must(os.Open("results"))
	channel := must(must(amqp.Dial(uri)).Channel())
	// Durable: it keeps events while this program is down. RabbitMQ 4 drops after 20 returns without the limit.
	kind := amqp.Table{"x-queue-type": "quorum", "x-delivery-limit": int32(1_000_000)}
	queue := must(channel.QueueDeclare("orders.go", true, false, false, false, kind))
	must(0, channel.QueueBind(queue.Name, "redemption.#", "redemption.results", false, nil))
	must(0, channel.Qos(50, 0, false))
	events := must(channel.Consume(queue.Name, "", false, false, false, false, nil)) // acknowledged explicitly
	fmt.Println("waiting")
	for event := range events {
		word := map[bool]string{true: "new", false: "repeat"}[store(folder, event.MessageId, event.Body)]
		fmt.Println(word, event.Type, event.MessageId, event.CorrelationId, answers(event.Body))
		must(0, event.Ack(false)) // last: an event without an ack is delivered again, as a repeat
	}
	log.Fatal("the connection or the queue is gone") // the supervisor restarts this program
}
