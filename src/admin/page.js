const renew=(old,again)=>{if(!again||old.outerHTML===again.outerHTML)return;if(old.matches("main,header,.cards")&&old.children.length===again.children.length)for(const[nth,part]of[...old.children].entries())renew(part,again.children[nth].cloneNode(true));else old.replaceWith(again)};
setInterval(async()=>{let page;try{const answer=await fetch("/",{signal:AbortSignal.timeout(1900)});page=new DOMParser().parseFromString(await answer.text(),"text/html")}catch{page=null}
if(!page){document.body.className="broken";document.querySelector("h1").textContent="The service does not respond.";return}
document.title=page.title;document.body.className=page.body.className;renew(document.querySelector("main"),page.querySelector("main"))},2000);
