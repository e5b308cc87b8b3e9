setInterval(async()=>{let page;try{const answer=await fetch("/",{signal:AbortSignal.timeout(1900)});page=new DOMParser().parseFromString(await answer.text(),"text/html")}catch{page=null}
if(!page){document.body.className="broken";document.querySelector("h1").textContent="The service does not answer.";return}
document.title=page.title;document.body.className=page.body.className;document.querySelector("main").replaceWith(page.querySelector("main"))},2000);
